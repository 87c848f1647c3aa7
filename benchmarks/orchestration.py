"""What a trial costs besides its training, at so many trials in the database.

    python benchmarks/orchestration.py [--trials 100 1000 5000 10000] [--each 30] [--databases postgresql sqlite]
                                       [--steps] [--quick] [--json]

A trial of 10 epochs that trains nothing (tests/load/nothing.py): claimed, asked for with TPE, every epoch recorded and
decided, told. The calls are those of a worker, in one thread, without checkpoints and MLflow. Against it
Optuna alone, with TPE and a median pruner, in the same database: asked, 10 epochs reported and decided, told. The two
take turns, a trial each. The database is filled before with trials that are written whole. `--steps` says where the
time of ours goes.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median

import optuna
from optuna.trial import TrialState, create_trial
from rows import ROOT, Aim, Row, parser, row, show

sys.path.insert(0, str(ROOT))  # the machinery of the load tests

from model.corpus.data import load_corpus
from model.types import EpochReport
from sweeps import judging, pruning, states, worker
from sweeps.records import Claim
from sweeps.settings import Home
from sweeps.spec import corpus_of, spec_of
from sweeps.store import Store
from sweeps.study import Study
from sweeps.worker import Assignment
from tests.load import ground, measures, timed
from tests.load.nothing import Nothing

EPOCHS = 10
LEASE_SECONDS = 120.0
TRIALS, QUICK = (100, 1_000, 5_000, 10_000), (100, 1_000)
WARM = 3
"""Trials that are not counted: a process reads the others' curves once."""
AIMS = {("postgresql", 1_000): Aim(75, 60, of="value"), ("postgresql", 10_000): Aim(190, 150, of="value")}


pruning.LEAST_CHANCE = 0.0  # the rule is asked after each epoch, and stops nobody


class Ours:
    """A worker without the rest of a worker around it."""

    def __init__(self, assignment: Assignment, store: Store) -> None:
        self.assignment, self.store = assignment, store
        self.random, self.stop = random.Random(0), threading.Event()

    def claim(self) -> Claim:
        claim = self.store.claim(self.assignment.sweep.id, "bench", LEASE_SECONDS)
        assert claim is not None
        return claim

    def trial(self) -> None:
        assignment, store, claim = self.assignment, self.store, self.claim()
        spec, sweep = assignment.spec, assignment.sweep
        config = spec.training(claim.number, worker.ask(assignment, store, claim), claim.overrides)
        config = config.with_values({"patience": EPOCHS})  # all trials have 10 epochs
        trainer, reports = Nothing(config, assignment.corpus), list[EpochReport]()
        while assignment.judge.judge_all(claim, config, reports, len(reports)) is None:
            assert not worker.why_not_on(assignment, store, claim, trainer.epoch + 1, self.stop)
            reports.append(trainer.train_epoch(lambda: False))
        judging.tell(store, assignment.study, sweep.id, claim.trial_id)
        assert len(reports) == EPOCHS, f"trial {claim.number} was over after {len(reports)} epochs"

    def fill(self) -> None:
        """The same rows, written at once."""
        assignment, store, claim = self.assignment, self.store, self.claim()
        values = {
            name: random_value(self.random, bounds.low, bounds.high)
            for name, bounds in assignment.spec.space.parameters().items()
        }
        optuna_trial = assignment.study.register(claim.number, claim.name, values)
        store.set_hyperparameters(claim, values, optuna_trial)
        trainer = Nothing(assignment.spec.training(claim.number, values, claim.overrides), assignment.corpus)
        reports = [trainer.train_epoch(lambda: False) for _ in range(EPOCHS)]
        judging.record(store, claim, reports, assignment.sweep.floors.constant_wer)
        store.finish(claim, states.TrialState.COMPLETE, "learned", "filled", "epochs", {})
        judging.tell(store, assignment.study, assignment.sweep.id, claim.trial_id)


class Alone:
    """Optuna, as its documentation has it."""

    def __init__(self, url: str, ours: Assignment) -> None:
        self.random, self.ranges = random.Random(1), ours.spec.space.parameters()
        self.study = optuna.create_study(
            storage=url,
            study_name="alone",
            sampler=optuna.samplers.TPESampler(seed=0, multivariate=True, constant_liar=True),
            pruner=optuna.pruners.MedianPruner(),
        )

    def trial(self) -> None:
        trial = self.study.ask()
        for name, bounds in self.ranges.items():
            if isinstance(bounds.low, int):
                trial.suggest_int(name, bounds.low, int(bounds.high))
            else:
                trial.suggest_float(name, bounds.low, bounds.high, log=bounds.log)
        for epoch in range(1, EPOCHS + 1):
            trial.report(self.random.random() / epoch, epoch)
            trial.should_prune()
        self.study.tell(trial, self.random.random())

    def fill(self) -> None:
        values = {name: random_value(self.random, bounds.low, bounds.high) for name, bounds in self.ranges.items()}
        distributions = {
            name: optuna.distributions.IntDistribution(bounds.low, int(bounds.high))
            if isinstance(bounds.low, int)
            else optuna.distributions.FloatDistribution(bounds.low, bounds.high, log=bounds.log)
            for name, bounds in self.ranges.items()
        }
        curve = {epoch: self.random.random() / epoch for epoch in range(1, EPOCHS + 1)}
        self.study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=self.random.random(),
                params=values,
                distributions=distributions,
                intermediate_values=curve,
            )
        )


def random_value(source: random.Random, low: float, high: float) -> float:
    return source.randint(low, int(high)) if isinstance(low, int) else source.uniform(low, high)


def milliseconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def measured(kind: str, levels: Sequence[int], each: int, folder: Path, *, steps: bool) -> list[Row]:
    rows = []
    with ground.database(kind) as database:
        most = max(levels) + (len(levels) + 1) * (WARM + each)
        ground.created(folder, database.url, most, EPOCHS, "tpe")
        with closing(Store(database.url)) as store:
            sweep = store.find_sweep(ground.NAME)
            assert sweep is not None
            corpus = load_corpus(corpus_of(sweep), cache=Home(folder / "home").scans)
            with closing(Study(database.url, spec_of(sweep))) as study:
                assignment = Assignment(
                    sweep, spec_of(sweep), corpus, study, judging.Judge(spec_of(sweep), store, sweep)
                )
                ours, alone = Ours(assignment, store), Alone(database.url, assignment)
                done = 0
                for level in levels:
                    for way in (ours, alone):
                        for _ in range(level - done):
                            way.fill()
                    done = level + WARM + each
                    pairs = [(milliseconds(ours.trial), milliseconds(alone.trial)) for _ in range(WARM + each)][WARM:]
                    mine, theirs = (median(pair[side] for pair in pairs) for side in (0, 1))
                    name = f"a trial at {level:,} trials, {'PostgreSQL' if kind == 'postgresql' else 'SQLite'}"
                    aim = AIMS.get((kind, level))
                    rows.append(row(name, mine, "ms", "Optuna alone, median pruner", theirs, None, aim))
                    print(f"{name}: {mine:.0f} ms, {theirs:.0f} ms", file=sys.stderr, flush=True)
                    if steps and level == levels[-1]:  # once: the clock stays
                        tell_steps(ours, folder / "times", each)
    return rows


def tell_steps(ours: Ours, folder: Path, trials: int) -> None:
    """Milliseconds of each step, a trial."""
    folder.mkdir()
    timed.install(folder, timed.STEPS)
    for _ in range(trials):
        ours.trial()
    for step, of in measures.latencies(list(timed.calls(folder)), trials).items():
        print(f"    {step:15} {of.ms_per_trial:7.1f} ms in {of.calls / trials:.0f} calls", file=sys.stderr)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--trials", type=int, nargs="+", help=f"default: {TRIALS}, and {QUICK} with --quick")
    options.add_argument("--each", type=int, help="trials that are measured at each; default: 30, and 10 with --quick")
    options.add_argument("--databases", nargs="+", choices=["postgresql", "sqlite"], default=["postgresql", "sqlite"])
    options.add_argument("--steps", action="store_true", help="say on stderr where the time goes (last level only)")
    arguments = options.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    levels = arguments.trials or (QUICK if arguments.quick else TRIALS)
    each, rows = arguments.each or (10 if arguments.quick else 30), []
    for kind in arguments.databases:
        with tempfile.TemporaryDirectory(prefix="bench") as folder:
            rows += measured(kind, sorted(levels), each, Path(folder), steps=arguments.steps)
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
