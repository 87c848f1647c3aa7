"""One sweep at one place: its commands with their faults, watched until it is over, and what that took."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from sweeps import preparing, service
from sweeps.errors import DatabaseUnavailable
from sweeps.settings import Home
from sweeps.spec import load_spec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from tests.acceptance.commands import Command, environment, living
from tests.corpora import write_corpus
from tests.faults import counting
from tests.faults.points import PLAN, Fault, Fired, Plan

ROOT = Path(__file__).parents[2]
TRAINER = f"{Path(counting.__file__).resolve()}:CountingTrainer"
LEASE_SECONDS = 5.0
"""As short as it may be where the machine is busy with other work: a first suggestion takes three seconds there."""

CALM_LEASE_SECONDS = 60.0
"""Where nothing strikes: a busy machine that lets a worker wait for seconds is no fault of ours."""

RACE_SECONDS = 20.0
"""A frozen process is woken at the latest after so many, unless its fault says for how long it is frozen."""

LEFT_OVER = "MLflow did not take everything"
"""What a command says that ended while MLflow was away: then `sweeps mirror` sends it, as it says."""

NO_TRIAL_SECONDS = 1.5 * LEASE_SECONDS
"""How long one is frozen that holds no trial."""


@dataclass(frozen=True)
class Outcome:
    seconds: float
    """From the first command to the end of the last one."""
    starts: int
    """Commands that were started again."""
    begun_at: float
    """UNIX seconds."""
    outage: float
    """Seconds for which a server was away, or a process frozen."""


@dataclass
class Site:
    """Where a sweep lives. `database` None: SQLite in its home."""

    folder: Path
    name: str
    database: str | None
    tracking: str | None
    spec: Mapping[str, Any] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    trainer: str | None = TRAINER
    environment: Mapping[str, str] = field(default_factory=dict)
    lease_seconds: float = LEASE_SECONDS
    commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home = Home(self.folder / "home")
        self.plan = Plan(self.folder / "plan", self.faults)
        self.plan.write()
        self.log = self.folder / "counted"
        self.spec_file = self.folder / "spec.yaml"
        self.spec_file.write_text(yaml.safe_dump({"name": self.name, **self.spec}), encoding="utf-8")
        self.url = self.database or self.home.database_url

    def places(self, *, ships: bool = True) -> list[str]:
        database = ["--database", self.database] if self.database else []
        tracking = ["--tracking-uri", self.tracking] if self.tracking and ships else []
        return ["--home", str(self.home.root), *database, *tracking]

    def run_words(self) -> list[str]:
        trainer = ["--trainer", self.trainer] if self.trainer else []
        lease = ["--lease-seconds", str(self.lease_seconds)]
        return ["run", str(self.spec_file), "--json", "--skip-range-test", *trainer, *lease, *self.places()]

    def work_words(self) -> list[str]:
        trainer = ["--trainer", self.trainer] if self.trainer else []
        lease = ["--lease-seconds", str(self.lease_seconds)]
        return ["work", self.name, "--until-done", *trainer, *lease, *self.places()]

    def create(self) -> None:
        """The sweep, RUNNING, without anybody who works on it."""
        prepared = preparing.prepare(load_spec(self.spec_file), self.home, trainer=self.trainer)
        with closing(service.load_home_store(self.home, self.database)) as store:
            sweep = preparing.open_sweep(store, prepared)
            store.set_sweep_state(sweep.id, SweepState.RUNNING)

    def start(self, words: Sequence[str]) -> Command:
        """`sweeps WORDS` with the faults of the plan, in a process group of its own."""
        number = len(self.commands)
        stdout, stderr = (self.folder / f"{number}.{stream}" for stream in ("stdout", "stderr"))
        settings = {
            PLAN: str(self.plan.folder),
            counting.LOG: str(self.log),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
            **self.environment,
        }
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.armed", *words],
                cwd=ROOT,
                env={**environment(self.home.root), **settings},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        command = Command(process, self.home.root, stdout, stderr)
        self.commands.append(command)
        return command

    def words(self) -> str:
        """All that was said: by the commands and in their workers' logs."""
        logs = sorted((self.home.root / "logs").rglob("*.log"))
        said = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
        return "\n".join(
            [command.words() for command in self.commands]
            + [f"--- {log.name}\n{text}" for log, text in zip(logs, said, strict=True)]
        )

    def state(self, store: Store) -> SweepState | None:
        """None while there is no sweep, or no database."""
        with suppress(DatabaseUnavailable):
            sweep = store.find_sweep(self.name)
            return sweep.state if sweep else None
        return None

    def drive(
        self,
        commands: Sequence[Sequence[str]],
        outside: Mapping[str, Callable[[], float]] | None = None,
        patience: float = 300.0,
    ) -> Outcome:
        """Start the commands, again when they end before the sweep does, and wake what was frozen.

        Args:
            outside: what faults of the action `call` call, by their names.
            patience: seconds after which the whole is a failure.

        Raises:
            AssertionError: it did not end within `patience`; the message has all that was said.
        """
        begun, begun_at = time.monotonic(), time.time()
        with (
            closing(service.load_home_store(self.home, self.database)) as store,
            _Outside(self, outside or {}) as calls,
        ):
            alive = [(words, self.start(words)) for words in commands]
            starts = 0
            while alive:
                time.sleep(0.05)
                calls.look(store)
                if time.monotonic() - begun > patience:
                    raise AssertionError(f"not over after {patience:.0f} s\n{self.words()}")
                for each in [each for each in alive if each[1].process.poll() is not None]:
                    alive.remove(each)
                    if not self._is_over(store) or each[1].process.returncode < 0:  # as whatever starts them would
                        starts += 1
                        assert starts <= len(self.faults) + 3, f"commands end again and again\n{self.words()}"
                        alive.append((each[0], self.start(each[0])))
            if any(LEFT_OVER in command.words() for command in self.commands):
                starts += 1
                assert self.start(["mirror", self.name, *self.places()]).wait() == 0, self.words()
            seconds = time.monotonic() - begun
        return Outcome(seconds, starts, begun_at, calls.outage)

    def _is_over(self, store: Store) -> bool:
        state = self.state(store)
        return state is SweepState.COMPLETE

    def close(self) -> None:
        """Nothing of it lives afterwards."""
        for process in living(self.home.root):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for command in self.commands:
            command.process.wait(10)


class _Outside:
    """Wakes frozen processes, and calls what is to happen to servers, each in a thread."""

    def __init__(self, site: Site, calls: Mapping[str, Callable[[], float]]) -> None:
        self._site, self._calls = site, calls
        self._seen: set[int] = set()
        self._frozen: list[_Frozen] = []
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self.outage = 0.0

    def __enter__(self) -> _Outside:
        return self

    def __exit__(self, *_: object) -> None:
        for frozen in self._frozen:
            frozen.wake()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

    def look(self, store: Store) -> None:
        for fired in self._site.plan.fired():
            if fired.fault in self._seen:
                continue
            self._seen.add(fired.fault)
            fault = self._site.plan.faults[fired.fault]
            if fault.action == "stop":
                self._frozen.append(_Frozen(fired, self._site.name, fault.seconds))
            elif fault.action == "call":
                self._threads.append(threading.Thread(target=self._call, args=(self._calls[fault.name],)))
                self._threads[-1].start()
            elif fault.action in ("hang", "full disk"):
                self.outage += fault.seconds
        for frozen in list(self._frozen):
            if frozen.may_wake(store):
                frozen.wake()
                self.outage += time.monotonic() - frozen.fired.at
                self._frozen.remove(frozen)

    def _call(self, call: Callable[[], float]) -> None:
        try:
            self.outage += call()
        except BaseException as error:  # told in __exit__
            self._errors.append(error)


class _Frozen:
    """A process that has stopped itself: woken once its trial was taken from it, as that is the hard case."""

    def __init__(self, fired: Fired, sweep: str, seconds: float) -> None:
        self.fired, self._sweep, self._seconds = fired, sweep, seconds
        self._held: tuple[int, int] | None = None
        self._looked = False

    def may_wake(self, store: Store) -> bool:
        frozen_for = time.monotonic() - self.fired.at
        if self._seconds or frozen_for > RACE_SECONDS:
            return frozen_for > self._seconds
        with suppress(DatabaseUnavailable):
            if not self._looked:
                self._held, self._looked = self._trial(store), True
            if self._held is None:
                return frozen_for > NO_TRIAL_SECONDS
            sweep = store.find_sweep(self._sweep)
            assert sweep is not None
            number, attempt = self._held
            trial = store.trial(sweep.id, number)
            return trial.attempt != attempt or trial.state is not TrialState.RUNNING
        return False

    def wake(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.fired.pid, signal.SIGCONT)

    def _trial(self, store: Store) -> tuple[int, int] | None:
        """Number and attempt of the trial that it holds."""
        sweep = store.find_sweep(self._sweep)
        ids = {worker.id for worker in store.workers() if worker.pid == self.fired.pid}
        for trial in store.trials(sweep.id) if sweep else []:
            if trial.state is TrialState.RUNNING and trial.worker in ids:
                return trial.number, trial.attempt
        return None


@contextmanager
def opened(site: Site) -> Iterator[Site]:
    """A site that leaves nothing behind that runs."""
    try:
        yield site
    finally:
        site.close()


def corpus(folder: Path) -> Path:
    """A corpus that takes no time to read, in which the check finds no fault."""
    sentences = {split: [f"{a} {b}" for a in "ABCD" for b in "ABCD" if a != b] for split in ("train", "dev")}
    return write_corpus(folder, sentences, width=225)
