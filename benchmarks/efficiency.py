"""Epochs and hours that a sweep on AN4 needs to a dev WER of 0.35, by replay of the recorded runs.

    python benchmarks/efficiency.py [--orders 204] [--processes 2] [--target 0.35] [--quick] [--json]
    python benchmarks/efficiency.py --record

A sweep draws runs of benchmarks/curves/an4 (in random order, or by TPE with each suggestion answered by the nearest
run that it has not had), reads them an epoch at a time with the epochs' measured seconds, and stops them as its policy
says, until an epoch reaches the target. What it takes is the expected running time: what all sweeps spent over how
many got there (Hansen et al. 2009, COCO), with a 95 % interval by bootstrap over the orders, which are the same for
every policy. Trials are trained one after the other, and none is named in advance.

Ours begins with its range test, which costs its seconds, draws within the rates that it proposed, and tries its own
suggestion first. How some sweeps of different seeds began was recorded as well (`--record`), and the orders take these
in turn: the tests in efficiency.json, each beside epochs of training (a ratio, so that another machine's speed says
nothing), and the trials in beginnings/. What the rule adds alone, and the test alone, stand apart. The suggestion
is not shown to TPE here, as it is in a sweep.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import optuna
from curves import TABLES, Run, record_run
from rows import ROOT, Aim, Row, about, parser, row, show

sys.path.insert(0, str(Path(__file__).parent / "pruning"))

from policies import Named, never, optunas, ours
from sweep import Draw, Trial, by_tpe, in_random_order, replay
from tables import Recorded, read_run, read_tables

sys.path.insert(0, str(ROOT))

from sweeps.range_test import config_of_test
from sweeps.spec import SweepSpec

RECORDED = Path(__file__).with_name("efficiency.json")
FIRST_TRIALS = Path(__file__).with_name("beginnings")
BEGINNINGS = 6
EPOCHS = 20
"""Of the recorded runs."""
RESAMPLED = 2000
RULE_ALONE, TEST_ALONE = "ours without the range test", "unpruned with the range test"
FASTER, AHEAD = Aim(1.7, 3, most=False), Aim(1, most=False)


@dataclass(frozen=True)
class Ramp:
    """A range test on AN4, and the seed of its sweep."""

    seed: int
    epochs: float
    """How many epochs of training take as long."""
    low: float | None
    high: float | None
    suggested: float | None


class Beginning(NamedTuple):
    """How a sweep begins: its range test, and the trial at the rate that this suggests (if it does), all else in the
    middle.
    """

    ramp: Ramp
    first: tuple[Recorded, ...]

    def within(self, runs: Sequence[Recorded]) -> list[Recorded]:
        """Those at rates that the test proposed."""
        low, high = self.ramp.low or 0.0, self.ramp.high or math.inf
        return [run for run in runs if low <= run.config.learning_rate <= high]


class Cost(NamedTuple):
    """What one sweep spent until it got there, or in all."""

    epochs: float
    seconds: float
    reached: bool


def cost(trials: Sequence[Trial], target: float) -> Cost:
    epochs, seconds = 0, 0.0
    for trial in trials:
        for wer, report in zip(trial.run.wers[: trial.epochs], trial.run.reports, strict=False):
            epochs, seconds = epochs + 1, seconds + report.seconds
            if wer <= target:
                return Cost(epochs, seconds, True)
    return Cost(epochs, seconds, False)


def beginnings() -> list[Beginning]:
    """Those that were recorded."""
    ramps = [Ramp(**each) for each in json.loads(RECORDED.read_text(encoding="utf-8"))["ramps"]]
    return [Beginning(ramp, (read_run(first_file(ramp.seed)),) if ramp.suggested else ()) for ramp in ramps]


def first_file(seed: int) -> Path:
    return FIRST_TRIALS / f"{900 + seed}.json"  # a number that no run of the table has


def drawn(runs: list[Recorded], sampler: str, seed: int, first: Sequence[Recorded]) -> Iterator[Recorded] | Draw:
    """The order of a sweep's trials."""
    if sampler == "random":
        return iter([*first, *in_random_order(runs, seed)])
    then = by_tpe(runs, seed)
    return lambda trials: first[len(trials)] if len(trials) < len(first) else then(trials[len(first) :])


def costs(
    policy: Named, runs: list[Recorded], sampler: str, begun: Sequence[Beginning], orders: int, target: float
) -> list[Cost]:
    """Of one sweep for each order; they take in turn how they begin, if they are not to begin as any other sweep."""
    each, found = median(report.seconds for run in runs for report in run.reports), []
    for seed in range(orders):
        begins = begun[seed % len(begun)] if begun else None
        among, ahead = (begins.within(runs), begins.ramp.epochs) if begins else (runs, 0.0)
        first = [as_slow(run, each) for run in begins.first] if begins else []
        order = drawn(among, sampler, seed, first)
        spent = cost(replay(policy.make, order, seed, len(among) + len(first)).trials, target)
        found.append(Cost(ahead + spent.epochs, ahead * each + spent.seconds, spent.reached))
    return found


def as_slow(run: Recorded, seconds: float) -> Recorded:
    """The run as if its median epoch took so long: the table is of a slower trainer and hour."""
    slower = seconds / median(report.seconds for report in run.reports)
    return replace(run, reports=tuple(replace(report, seconds=slower * report.seconds) for report in run.reports))


class Estimate(NamedTuple):
    value: float
    low: float
    high: float


def expected(found: Sequence[Cost], of: str) -> float:
    """Expected running time; infinite where no sweep got there."""
    successes = sum(each.reached for each in found)
    return sum(getattr(each, of) for each in found) / successes if successes else math.inf


def times_faster(slow: Sequence[Cost], fast: Sequence[Cost], of: str, groups: int = 0) -> Estimate:
    """By how much, over the same orders, which are drawn anew for the interval; where they take so many beginnings in
    turn, these first.
    """
    spent = np.array([[getattr(each, of) for each in some] for some in (slow, fast)])
    reached = np.array([[each.reached for each in some] for some in (slow, fast)], dtype=float)
    chance, count = np.random.default_rng(0), spent.shape[1]
    orders = chance.integers(count, size=(RESAMPLED, count))
    if groups:
        drawn_groups = np.repeat(chance.integers(groups, size=(RESAMPLED, groups)), -(-count // groups), axis=1)
        orders = orders // groups * groups + drawn_groups[:, :count]
        orders = np.where(orders < count, orders, orders - groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = spent[:, orders].sum(2) / reached[:, orders].sum(2)
        ratios = times[0] / times[1]
    low, high = np.nanpercentile(ratios, [2.5, 97.5])
    return Estimate(expected(slow, of) / expected(fast, of), float(low), float(high))


class Way(NamedTuple):
    """How a sweep goes."""

    name: str
    policy: Named
    with_test: bool


def ways(sampler: str) -> list[Way]:
    """Of TPE's, which take minutes, one setting of each of Optuna's pruners, as in the replays of pruning."""
    others = [Way(str(policy), policy, False) for policy in optunas() if sampler == "random" or policy.with_tpe]
    rule, none = Named("ours", {}, ours), Named("none", {}, never)
    return [
        Way("unpruned", none, False),
        Way("ours", rule, True),
        Way(RULE_ALONE, rule, False),
        Way(TEST_ALONE, none, True),
        *others,
    ]


_runs: list[Recorded] = []
_begun: list[Beginning] = []


def _begin() -> None:
    """Policies hold functions, which do not cross processes."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    _runs.extend(read_tables(names=["an4"])["an4"])
    _begun.extend(beginnings())


def _costs(task: tuple[str, int, int, float]) -> list[Cost]:
    sampler, index, orders, target = task
    way = ways(sampler)[index]
    return costs(way.policy, _runs, sampler, _begun if way.with_test else [], orders, target)


def as_rows(sampler: str, found: dict[str, list[Cost]], families: dict[str, str]) -> list[Row]:
    """Ours against unpruned, and against each pruner at its best setting."""

    def against(slow: str, of: str, aim: Aim | None, fast: str = "ours") -> Row:
        faster = times_faster(found[slow], found[fast], of, BEGINNINGS)
        got = [sum(each.reached for each in found[name]) for name in (fast, slow)]
        note = (
            f"95 %: {faster.low:.2f} to {faster.high:.2f}; {got[0]} and {got[1]} of {len(found[slow])} sweeps got there"
        )
        scale, unit = (1, "epochs") if of == "epochs" else (3600, "h")
        order = "random order" if sampler == "random" else "TPE"
        name = f"{of if of == 'epochs' else 'hours'}, {order}, {fast}, against {slow}"
        spent = (expected(found[each], of) / scale for each in (fast, slow))
        return row(name, next(spent), unit, slow, next(spent), faster.value, aim, note)

    rows = [against("unpruned", "epochs", FASTER), against("unpruned", "seconds", FASTER)]
    rows += [against("unpruned", "epochs", None, part) for part in (RULE_ALONE, TEST_ALONE)]
    best = []
    for family in dict.fromkeys(families.values()):
        settings = [name for name, of in families.items() if of == family]
        best.append(min(settings, key=lambda name: expected(found[name], "epochs")))
    rows += [against(name, "epochs", AHEAD) for name in best]
    first = min(best, key=lambda name: expected(found[name], "epochs"))
    return [*rows, against(first, "epochs", None, RULE_ALONE)]


def record(processes: int) -> None:
    """How the sweeps of benchmarks/live.py begin, which are over the space of the recorded runs."""
    FIRST_TRIALS.mkdir(exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        ramps = []
        for ramp, line in pool.imap(_record_beginning, range(BEGINNINGS)):
            ramps.append(asdict(ramp))
            RECORDED.write_text(json.dumps({"ramps": ramps, **about()}, indent=1) + "\n", encoding="utf-8")
            print(f"{ramp}\n{line}", flush=True)


def _record_beginning(seed: int) -> tuple[Ramp, str]:
    """Run the range test beside two epochs of training, then train the trial that follows from it, and write that."""
    from live import OURS, spec

    from model.corpus.data import CorpusConfig, load_corpus
    from model.ctc import CTCTrainer

    table = next(table for table in TABLES if table.name == "an4")
    sweep = SweepSpec.model_validate(spec(table.path(), seed, OURS))
    config = config_of_test(sweep)
    trainer = CTCTrainer(config, load_corpus(CorpusConfig(path=table.path())))
    epochs = [trainer.train_epoch(lambda: False).seconds]
    without = ("patience", "plateau_patience")  # a ramp has no use for them, so its command does not take them
    options = [f"--{name}={value}" for name, value in config.changed().items() if name not in without]
    began = time.perf_counter()
    asked = [sys.executable, "-m", "model", "range-test", "--data_dir", str(table.path()), "--json", *options]
    said = json.loads(subprocess.run(asked, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
    seconds = time.perf_counter() - began  # with its start, as in a sweep
    epochs.append(trainer.train_epoch(lambda: False).seconds)
    ramp = Ramp(seed, seconds / median(epochs), said["low"], said["high"], said["suggested"])
    if ramp.suggested is None:
        return ramp, "no rate is suggested"
    tried = {name: getattr(config, name) for name in sweep.space.parameters()}
    tried |= {"learning_rate": float(f"{ramp.suggested:.3g}")}
    file = first_file(seed)
    trial = sweep.training(0, tried, {}).with_values({"probe_interval": 1})
    return ramp, record_run(Run(table, file.stem, trial), file)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--orders", type=int, help="default: 204, and 12 with --quick")
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--target", type=float, default=0.35, help="dev WER (fraction)")
    options.add_argument("--record", action="store_true", help="run range tests and their trials, and write both")
    arguments = options.parse_args()
    if arguments.record:
        record(arguments.processes)
        return
    orders, rows = arguments.orders or (12 if arguments.quick else 204), []
    with multiprocessing.get_context("spawn").Pool(arguments.processes, _begin) as pool:
        for sampler in ("random", "tpe"):
            named = ways(sampler)
            tasks = [(sampler, index, orders, arguments.target) for index in range(len(named))]
            found = dict(zip([way.name for way in named], pool.imap(_costs, tasks), strict=True))
            families = {way.name: way.policy.family for way in named if way.policy.family not in ("none", "ours")}
            rows += as_rows(sampler, found, families)
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
