"""`sweeps notify`, and what `sweeps run` tells: real commands, a real server that is told."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sweeps.records import NotificationRow
from sweeps.settings import Home
from sweeps.store import Store
from tests.acceptance import commands
from tests.telling import hooked

Tried = Callable[..., tuple[int, str, str]]
SHORT = {"budget": {"trials": 2}, "range_test": False, "on_alarm": "continue"}


def test_a_channel_is_tried_and_what_waits_is_sent(tmp_path: Path, tried: Tried) -> None:
    home, file = tmp_path / "home", tmp_path / "home" / "notify.yaml"
    code, _, err = tried("notify", "--home", home)
    assert (code, "notify.yaml: is not there, so nobody is told" in err) == (2, True)
    home.mkdir()
    with hooked() as hook:
        file.write_text(f"team:\n  webhook: {hook.url}\n  on: end\n", encoding="utf-8")
        code, out, _ = tried("notify", "--test", "team", "--home", home)
        assert (code, out) == (0, "1 sent\n")
        assert hook.got[0]["event"] == "test"
        code, _, err = tried("notify", "--test", "nobody", "--home", home)
        assert (code, err) == (2, "error: there is no channel 'nobody': there are team\n")
        code, out, _ = tried("notify", "--home", home)
        assert (code, out) == (0, "0 sent\n")
    code, _, err = tried("notify", "--test", "--home", home)
    assert code == 1
    assert "team: not told of test: 127.0.0.1: ConnectError" in err


def test_a_faulty_file_stops_a_sweep_before_it_begins(tmp_path: Path, tried: Tried) -> None:
    file = tmp_path / "told.yaml"
    file.write_text("team: {webhok: 'https://x.org'}\n", encoding="utf-8")
    for words in (["run", commands.write_spec(tmp_path)], ["work"]):
        code, _, err = tried(*words, "--notify", file, "--home", tmp_path / "home")
        assert (code, err) == (2, f"error: {file}: team.webhok: unknown key; did you mean webhook?\n")
    assert not (tmp_path / "home" / "sweeps.db").exists()


@pytest.mark.slow
def test_a_run_tells_its_end_once_and_a_dead_channel_costs_it_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    spec = commands.write_spec(tmp_path, **SHORT)
    with hooked() as gone:
        dead = gone.url
    with hooked() as hook:
        told = f"team: {{webhook: '{hook.url}', on: end}}\ndead: {{webhook: '{dead}', on: end}}\n"
        (home / "notify.yaml").write_text(told, encoding="utf-8")
        first = commands.run(home, tmp_path, "run", spec, "--json")
        assert first.result()["state"] == "COMPLETE"
        assert [each["event"] for each in hook.got] == ["end"]
        assert "channel dead was not told of end of tiny" in first.words()
        commands.run(home, tmp_path, "run", spec, "--json")  # nothing left to do
        assert len(hook.got) == 1
    with hooked(gone.port) as back:
        commands.run(home, tmp_path, "notify")
        assert [each["event"] for each in back.got] == ["end"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group")
def test_a_run_that_is_killed_before_it_could_tell_is_followed_by_one_that_does(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    spec = commands.write_spec(tmp_path, **SHORT)
    with hooked() as gone:
        (home / "notify.yaml").write_text(f"team: {{webhook: '{gone.url}', on: end}}\n", encoding="utf-8")
    first = commands.start(home, tmp_path, "run", spec, "--json")
    first.until(lambda: any(row.trouble for row in written(home)))
    os.killpg(first.process.pid, signal.SIGKILL)
    first.wait()
    with hooked(gone.port) as back:
        for _ in range(2):
            commands.run(home, tmp_path, "run", spec, "--json")
            commands.run(home, tmp_path, "notify")
        assert [each["event"] for each in back.got] == ["end"]


def written(home: Path) -> list[NotificationRow]:
    if not (home / "sweeps.db").exists():
        return []
    with closing(Store(Home(home).database_url)) as store:
        sweep = store.find_sweep("tiny")
        return store.notifications(sweep.id) if sweep else []
