"""`sweeps serve` as people start it: with workers beside it, killed, ended, and with its database away."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from sweeps import Client
from sweeps.errors import NotAllowed
from sweeps.service import SweepService
from sweeps.settings import Home
from sweeps.states import TrialState
from sweeps.store import Store
from tests.acceptance.commands import TINY, Command, environment, run, start, until_gone, write_spec
from tests.faults.databases import postgresql
from tests.serving import corpus, spec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@contextmanager
def served(home: Path, *words: str | Path) -> Iterator[tuple[Command, str]]:
    """`sweeps serve` on a free port, and its address on loopback."""
    command = start(home, home.parent, "serve", "--port", "0", *words)
    try:
        said = command.until(lambda: re.search(r"serving http://\S+:(\d+)", command.words()))
        yield command, f"http://127.0.0.1:{said[1]}"
    finally:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.wait(10)
        until_gone(home)


def told(home: Path, *words: str | Path, token: str | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `sweeps WORDS`, which names its place itself."""
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", *map(str, words)],
        env=environment(home) | ({} if token is None else {"SWEEPS_TOKEN": token}),
        cwd=home.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


# A sweep over HTTP


def test_what_is_created_over_http_is_worked_to_its_end_and_told_alike(home: Path, tmp_path: Path) -> None:
    file = write_spec(tmp_path)
    with served(home) as (_, address), Client(address) as client:
        code, said, _ = told(home, "create", file, "--server", address, "--json")
        assert code == 0
        assert json.loads(said.splitlines()[-1])["state"] == "RUNNING"
        live: list[str] = []
        watcher = threading.Thread(target=lambda: live.extend(change.kind for change in client.live("tiny", after=0)))
        watcher.start()
        assert start(home, tmp_path, "work", "tiny", "--until-done", "--workers", "2").wait() == 0
        status = client.wait("tiny", timeout=60)
        assert status.sweep.state == "COMPLETE"
        assert status.counts[TrialState.COMPLETE] + status.counts[TrialState.PRUNED] == TINY["budget"]["trials"]
        watcher.join(30)
        assert not watcher.is_alive()
        assert live.count("event") == len(client.events("tiny"))
        best = client.best("tiny")
        assert best is not None
        assert best.command is not None
        _check_told_alike(home, address)


ASKED = [
    ["show"],
    ["show", "tiny"],
    ["show", "tiny/0"],
    ["show", "tiny/original"],
    ["show", "tiny", "--events"],
    ["show", "tiny/1", "--events"],
    ["status"],
    ["trials", "tiny"],
    ["actions"],
]
REFUSED = [
    ["show", "tyni"],
    ["show", "tiny/originl"],
    ["pause", "tyni"],
    ["stop", "tiny"],
    ["resume", "tiny"],
    ["resume", "tiny", "--trials", "2"],
    ["enqueue", "tiny", "learning_rte=1"],
    ["enqueue", "tiny", "learning_rate=1e-3"],
    ["delete", "tiny"],
]
CHANGES = [
    ["resume", "tiny", "--trials", "5"],
    ["enqueue", "tiny", "learning_rate=1e-3", "--name", "asked"],
    ["enqueue", "tiny", "learning_rate=1e-3", "--name", "asked"],
    ["pause", "tiny"],
    ["pause", "tiny"],
]
"""Each done twice: over HTTP, and again on the database, which changes nothing."""


def _check_told_alike(home: Path, address: str) -> None:
    there, here = ["--server", address], ["--home", str(home)]
    for words in (*ASKED, *REFUSED):
        for form in ([], ["--json"]) if words[0] != "delete" else ([],):
            over_http, direct = told(home, *words, *form, *there), told(home, *words, *form, *here)
            assert _comparable(over_http) == _comparable(direct), words
            assert over_http[0] == (2 if words in REFUSED else 0), words
    for words in CHANGES:
        over_http, direct = told(home, *words, "--json", *there), told(home, *words, "--json", *here)
        assert over_http[0] == direct[0] == 0, (words, over_http)
        assert _comparable(over_http) == _comparable(direct), words
    assert told(home, "delete", "tiny", "--yes", "--keep-mlflow", *there)[:2] == (0, "sweep tiny is deleted\n")
    assert told(home, "show", "tiny", *here)[0] == 2


def _comparable(said: tuple[int, str, str]) -> Any:
    """Without what must differ: where the dashboard is opened from here, and who asked."""
    code, out, err = said
    out = re.sub(r"(?m)^.*open with: .*$", "", out)
    out = re.sub(r'"(ui_command|tracking_uri)": "[^"]*"', "", out)
    return code, re.sub(r"paused by [^\s;]+( at [\d.]+)?", "paused", out), err.replace("Warning", "")


# Who gets in


def test_no_other_machine_gets_in_without_a_token(home: Path, tmp_path: Path) -> None:
    refused = run(home, tmp_path, "serve", "--host", "0.0.0.0", "--port", "0", code=2)
    assert "sweeps token create" in refused.words()
    assert "serving" not in refused.words()
    assert "Traceback" not in refused.words()
    code, spent, _ = told(home, "token", "create", "late", "--days", "0.00001", "--home", home)
    assert code == 0
    time.sleep(1.0)
    run(home, tmp_path, "serve", "--host", "0.0.0.0", "--port", "0", code=2)  # that one has expired
    code, token, _ = told(home, "token", "create", "me", "--home", home)
    assert code == 0
    with served(home, "--host", "0.0.0.0") as (command, address):
        assert "with tokens" in command.words()
        with Client(address, token.strip()) as client:
            assert client.sweeps() == []
        for wrong in (None, spent.strip()):
            with Client(address, wrong) as client, pytest.raises(NotAllowed):
                client.sweeps()
        assert httpx.get(f"{address}/healthz", headers={"Host": "evil.example"}).status_code == 421
        assert told(home, "show", "--server", address, token=token.strip())[0] == 0
        assert told(home, "show", "--server", address)[0] == 2
        told(home, "token", "revoke", "me", "--home", home)
        with Client(address, token.strip()) as client, pytest.raises(NotAllowed):
            client.sweeps()
        assert token.strip() not in command.words()


# Ends


def test_sigterm_ends_it_soon_with_live_streams_open(home: Path, tmp_path: Path) -> None:
    small = corpus(tmp_path / "corpora" / "small")
    with served(home, "--corpus-root", small.parent) as (command, address), Client(address) as client:
        client.create(spec("mine", "small"))
        streams = [client.live("mine") for _ in range(5)]
        for stream in streams:
            assert next(stream).kind == "status"
        begun = time.monotonic()
        command.process.send_signal(signal.SIGTERM)
        command.wait(30)
        assert time.monotonic() - begun < 5.0
        assert "Traceback" not in command.words()
        for stream in streams:
            stream.close()  # type: ignore[attr-defined]


def test_it_outlives_its_database(home: Path) -> None:
    """Killed as by a crash, away for some seconds: 503 with a time to wait, then all goes on."""
    with tempfile.TemporaryDirectory(prefix="pg") as folder, postgresql(Path(folder)) as server:
        url = server.schema()
        small = corpus(home.parent / "corpora" / "small")
        with served(home, "--database", url, "--corpus-root", small.parent) as (_, address), Client(address) as client:
            client.create(spec("mine", "small"))
            away = threading.Thread(target=server.away, args=(6.0,))
            away.start()
            seen: dict[str, set[int]] = {"/healthz": set(), "/readyz": set(), "/v1/sweeps": set()}
            http = httpx.Client(base_url=address, timeout=30)
            while away.is_alive():
                for path, codes in seen.items():
                    begun = time.monotonic()
                    answer = http.get(path)
                    codes.add(answer.status_code)
                    if answer.status_code == 503:
                        assert int(answer.headers["retry-after"]) > 0
                        assert answer.headers["content-type"] == "application/problem+json"
                        assert "postgres" not in answer.text
                    if path == "/healthz":
                        assert time.monotonic() - begun < 2.0
                time.sleep(0.1)
            away.join()
            assert seen["/healthz"] == {200}
            assert seen["/readyz"] <= {200, 503} >= seen["/v1/sweeps"]
            assert 503 in seen["/readyz"]
            assert 503 in seen["/v1/sweeps"]
            time.sleep(1.5)
            assert http.get("/readyz").status_code == 200
            assert client.pause("mine").sweep.state == "PAUSED"
            http.close()


# Killed in the middle of every write


@dataclass(frozen=True)
class Write:
    """Something that a client asks for, and what is to come of it, once."""

    ask: Callable[[Client, dict[str, Any]], Any]
    state: str | None
    events: Sequence[str]
    """Of the sweep, from its beginning."""
    trials: int = 1
    budget: int = 4


MADE = ("created", "running")
WRITES = {
    "create": Write(lambda c, content: c.create(content), "RUNNING", MADE),
    "enqueue": Write(lambda c, _: c.enqueue("mine", {"hidden": 32}), "RUNNING", (*MADE, "enqueued"), trials=2),
    "pause": Write(lambda c, _: c.pause("mine"), "PAUSED", (*MADE, "paused")),
    "resume": Write(lambda c, _: c.resume("mine", trials=6), "RUNNING", (*MADE, "paused", "running"), budget=6),
    "stop": Write(lambda c, _: c.stop("mine"), "STOPPED", (*MADE, "stopping", "stopped")),
    "cancel": Write(lambda c, _: c.cancel("mine"), "CANCELLED", (*MADE, "cancelling", "cancelled", "cancelled")),
    "delete": Write(lambda c, _: c.delete("mine"), None, ()),
}


@pytest.fixture(scope="module")
def dying() -> Iterator[tuple[Callable[[dict[str, Any] | None], int], str]]:
    """A server that dies as planned; giving it the next plan tells how often it died under the one before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.acceptance.dying"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    port, first = int(process.stdout.readline()), True

    def planned(plan: dict[str, Any]) -> int:
        nonlocal first
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(plan).encode() + b"\n")
        process.stdin.flush()
        deaths = 0 if first else int(process.stdout.readline())
        first = False
        return deaths

    yield planned, f"http://127.0.0.1:{port}"
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


@pytest.mark.parametrize("name", list(WRITES))
def test_killed_in_the_middle_of_a_write_nothing_is_lost_or_doubled(
    name: str, dying: tuple[Callable[[dict[str, Any]], int], str], tmp_path: Path
) -> None:
    plan_next, address = dying
    write, died = WRITES[name], 0
    corpus(tmp_path / "corpora" / "small")
    for when in ("before", "after"):
        for commit in range(1, 20):
            home = Home(tmp_path / f"home-{when}-{commit}")
            home.root.mkdir()
            with closing(Store(home.database_url)) as store:
                service = SweepService(store, home, "me")
                content = spec("mine", tmp_path / "corpora" / "small")
                service.create({**content, "name": "other"})
                if name != "create":
                    service.create(content)
                if name == "resume":
                    service.pause("mine")
                plan = {"home": str(home.root), "root": str(tmp_path / "corpora"), "commit": commit, "when": when}
                plan_next(plan)
                with Client(address) as client:
                    write.ask(client, content)
                deaths = plan_next(plan)  # the count; its server asks for nothing
                _check_done_once(service, write)
            if not deaths:  # there were not so many commits
                break
            died += 1
        assert commit > 2, "it was never killed"
    assert died >= 4


def _check_done_once(service: SweepService, write: Write) -> None:
    names = [status.sweep.name for status in service.sweeps()]
    assert names.count("other") == 1
    assert names.count("mine") == (0 if write.state is None else 1)
    if write.state is None:
        return
    status = service.sweep("mine")
    assert status.sweep.state == write.state
    assert [event.kind for event in service.events("mine")] == list(write.events)
    assert [trial.number for trial in service.trials("mine")] == list(range(write.trials))
    assert status.sweep.budget["trials"] == write.budget
