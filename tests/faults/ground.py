"""What the sweeps of one session share, and what it takes to strike one and look at it."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from model.corpus.synthetic import GeneratedConfig, generate
from sweeps.store import Store
from tests.faults import counting
from tests.faults.databases import Postgres, postgresql
from tests.faults.invariants import TOO_LONG, Curve, Expected, curve_of, repeated, violations
from tests.faults.mlflow_proxy import proxied
from tests.faults.outside import calls
from tests.faults.scenarios import Scenario
from tests.faults.site import CALM_LEASE_SECONDS, TRAINER, Site, corpus, opened
from tracking.server import LocalServer, local_server


@dataclass(frozen=True)
class Uninterrupted:
    """What a sweep comes to to which nothing happens."""

    seconds: float
    start: float
    """Until the first trial was claimed."""
    curves: Mapping[int, Curve]
    """By number of the trial."""


@dataclass(frozen=True)
class Row:
    """What came of one sweep."""

    scenario: str
    database: str
    what: str
    struck: list[str]
    repeated: int
    may_repeat: int
    seconds: float
    allowed: float
    uninterrupted: float
    start: float
    outage: float
    violations: list[str]
    words: str = field(default="", repr=False)
    """What was said, if a rule is broken."""

    def as_json(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if name != "words"}


class Ground:
    def __init__(self, folder: Path, mlflow: LocalServer, postgres: Callable[[], Postgres]) -> None:
        self._folder, self._mlflow, self.postgres = folder, mlflow, postgres
        self._corpus = corpus(folder / "corpus")
        self._numbers = itertools.count()
        self._measured: dict[tuple[str, str], Uninterrupted] = {}

    def strike(self, scenario: Scenario, database: str, *, all_strike: bool = True) -> Row:
        """Run the scenario's sweep with its faults, and look at what is left. Where nothing but the time is wrong the
        machine may be busier than it was: the uninterrupted time is measured again, beside it.

        Args:
            all_strike: whether a fault that did not strike breaks a rule.
        """
        row = self._struck(scenario, database, all_strike)
        if [line for line in row.violations if not line.startswith(TOO_LONG)] or not row.violations:
            return row
        base = self.measured(scenario.uninterrupted, database)
        allowed = scenario.allowed(base.seconds, base.start, row.outage)
        still = row.violations if row.seconds > allowed else []
        return replace(row, violations=still, allowed=allowed, uninterrupted=base.seconds, start=base.start)

    def _struck(self, scenario: Scenario, database: str, all_strike: bool) -> Row:
        base = self.uninterrupted(scenario.uninterrupted, database)
        with ExitStack() as stack:
            tracking, proxy = self._mlflow.url, None
            if scenario.tracking == "proxy":
                proxy = stack.enter_context(proxied(self._mlflow.url))
                tracking = proxy.url
            site = stack.enter_context(
                opened(self._site(scenario, database, None if scenario.tracking == "own" else tracking))
            )
            outcome = site.drive(commands(site, scenario), calls(site, proxy, self.postgres))
            allowed = scenario.allowed(base.seconds, base.start, outcome.outage)
            expected = Expected(
                scenario.trials,
                allowed,
                scenario.may_repeat,
                scenario.states,
                base.curves if scenario.real else None,
                all_strike,
            )
            found = violations(site, outcome, expected)
            return Row(
                scenario.name,
                database,
                scenario.what,
                [str(site.plan.faults[fired.fault]) for fired in site.plan.fired()],
                len(repeated(site)),
                scenario.may_repeat,
                outcome.seconds,
                allowed,
                base.seconds,
                base.start,
                outcome.outage,
                found,
                site.words() if found else "",
            )

    def uninterrupted(self, scenario: Scenario, database: str) -> Uninterrupted:
        """Measured at the first time that it is asked for."""
        key = (scenario.name, database)
        if key not in self._measured:
            self._measured[key] = self.measured(scenario, database)
        return self._measured[key]

    def measured(self, scenario: Scenario, database: str) -> Uninterrupted:
        """Here and now: machines differ, and this one may be shared."""
        calm = self._site(scenario, database, self._mlflow.url)
        calm.lease_seconds = CALM_LEASE_SECONDS
        with opened(calm) as site:
            outcome = site.drive(commands(site, scenario))
            with closing(Store(site.url)) as store:
                sweep = store.find_sweep(site.name)
                assert sweep is not None, site.words()
                epochs = store.sweep_epochs(sweep.id)
                curves = {trial.number: curve_of(trial, epochs[trial.id]) for trial in store.trials(sweep.id)}
                claimed = next(e.at for e in store.events(sweep.id) if e.kind == "claimed")
            expected = Expected(scenario.trials, math.inf, 0, curves=curves if scenario.real else None)
            found = violations(site, outcome, expected)
            assert found == [], f"{found}\n{site.words()}"
        return Uninterrupted(outcome.seconds, (claimed or 0) - outcome.begun_at, curves)

    def _site(self, scenario: Scenario, database: str, tracking: str | None) -> Site:
        number = next(self._numbers)
        url = self.postgres().schema() if database == "postgresql" else None
        steps = {counting.STEP_SECONDS: str(scenario.step_seconds)}
        name = f"{scenario.name} {database} {number}".replace(" ", "-")
        spec = scenario.spec(str(self._real_corpus() if scenario.real else self._corpus))
        trainer = None if scenario.real else TRAINER
        return Site(self._folder / name, name, url, tracking, spec, scenario.faults, trainer, steps)

    def _real_corpus(self) -> Path:
        """Made at the first time; afterwards it is there."""
        return generate(GeneratedConfig(train=24, dev=24, glosses=8), self._folder)


def commands(site: Site, scenario: Scenario) -> list[list[str]]:
    """What is started, each a command line."""
    if scenario.command == "run":
        return [site.run_words()]
    site.create()
    return [site.work_words()] * scenario.workers


@contextmanager
def prepared(folder: Path) -> Iterator[Ground]:
    """A ground with a running MLflow server, and a PostgreSQL server from the first time that it is asked for."""
    with ExitStack() as stack:

        @cache
        def postgres() -> Postgres:
            # Not below pytest's own folder: a server started by root runs as another user, who may not look in there.
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="pg"))
            return stack.enter_context(postgresql(Path(place)))

        yield Ground(folder, stack.enter_context(local_server(folder / "mlflow")), postgres)
