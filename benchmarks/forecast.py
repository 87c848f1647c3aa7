"""How often the forecast's chances come true, over sweeps replayed on the recorded curve tables.

    python benchmarks/forecast.py [--json] [--sweeps 24] [--processes 2] [--curves FOLDER] [--docs]

Sweeps are drawn in random order or by TPE, with the product's pruner and without any, with one worker and with four.
Each is asked for its forecast at several moments, with a budget of trials that is drawn for each. Stated and happened
are compared by the expected calibration error (ECE, ten bins of equal width) and the Brier score, with the constant as
it ships, and fitted to three corpora on the fourth. Intervals are 95 %, by leaving out a part of the runs
of each table at a time (delete-a-group jackknife). `--docs` writes docs/explanation/forecast.md's numbers and picture.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.optimize import minimize_scalar
from scipy.special import ndtr
from scipy.stats import t as student_t

sys.path.insert(0, str(Path(__file__).with_name("pruning")))

from moments import moments
from policies import never, ours
from sweep import Replayed, Trial, by_tpe, in_random_order, replay
from tables import CURVES, Recorded, read_tables

from model.types import mixed_seed
from sweeps import forecast

DOCS = Path(__file__).parents[1] / "docs" / "explanation"
PAGE, PICTURE = DOCS / "forecast.md", DOCS / "forecast.png"
BEGIN, END = "<!-- forecast.py writes from here -->", "<!-- to here -->"

LONGEST = 48
"""Trials of a replayed sweep, where the table has so many runs."""
TPE_SHARE = 2 / 3
"""TPE may draw this share of a table: it takes the good runs first, and none twice."""
MOMENTS = 6
"""Of each sweep, at random."""
IMPROVEMENTS = (0.005, 0.01, 0.02)
"""WER (fraction); the first is what the product asks."""
GROUPS = 8
"""Parts of the runs that are left out, one at a time, for the intervals."""
BINS = 10
STOPS = tuple(product((5, 10, 15), (0.05, 0.1, 0.2)))
"""Fewest trials, and the chance below which a sweep ends."""
AIM = 0.1
"""The ECE is to be at most this."""

CONFIGURATIONS = tuple(product(("random", "tpe"), ("none", "plateau"), (1, 4)))
"""Sampler, pruner, workers."""


@dataclass(frozen=True)
class Asked:
    """A forecast that was asked for, and what happened."""

    table: str
    sampler: str
    pruner: str
    workers: int
    sweep: int
    improvement: float
    margin: float
    over: int
    more: int
    deviations: tuple[float, ...]
    """Of each trial under way: how many of its spreads the WER to reach lies above its outlook."""
    stated: float
    """By the product's own function."""
    happened: bool


@dataclass(frozen=True)
class Count:
    """How many more trials a number of epochs paid for."""

    low: float
    high: float
    expected: float
    happened: float
    """One that the budget cut short counts by the share of its epochs that it had."""


@dataclass(frozen=True)
class Stopped:
    """A sweep that ended for its forecast, or did not, against the whole of it."""

    table: str
    fewest: int
    below: float
    stopped: bool
    epochs_share: float
    lost: float
    """WER (fraction)."""


@dataclass(frozen=True)
class Found:
    """What the sweeps over one table gave."""

    asked: list[Asked]
    counts: list[Count]
    stopped: list[Stopped]


def swept(runs: Sequence[Recorded], sampler: str, pruner: str, workers: int, seed: int) -> Replayed:
    """One sweep, as long as the table allows."""
    make = ours if pruner == "plateau" else never
    if sampler == "random":
        return replay(make, in_random_order(runs, seed), seed, min(LONGEST, len(runs)), workers)
    return replay(make, by_tpe(runs, seed), seed, min(LONGEST, int(TPE_SHARE * len(runs))), workers)


def final(trials: Sequence[Trial]) -> float:
    """The lowest WER of trials of a whole sweep."""
    return min(trial.best for trial in trials)


def seen(now: Sequence[Trial]) -> tuple[list[float], list[forecast.Outlook], int, int] | None:
    """WERs, outlooks, trials over, trials under way without an outlook; None where the product states no chance."""
    histories = [trial.history for trial in now]
    over = sum(trial.over for trial in now)
    if over < forecast.FEWEST_TRIALS or not any(history.takeoff for history in histories):
        return None
    running = [history for history, trial in zip(histories, now, strict=True) if not trial.over]
    looks = forecast.outlooks(running, histories, now[0].run.floors)
    return [trial.best for trial in now], looks, over, len(running) - len(looks)


def asked(whole: Replayed, at: tuple[str, str, int, int], rng: np.random.Generator) -> Iterator[Asked]:
    """Forecasts at random moments of a sweep, each with a random number of trials to go."""
    every = list(moments(whole, at[2]))
    for place in sorted(rng.choice(len(every), min(MOMENTS, len(every)), replace=False)):
        now = every[place]
        found = seen(now)
        if found is None:
            continue
        wers, looks, over, blind = found
        to = int(rng.integers(len(now), len(whole.trials) + 1))
        best, last, more = min(wers), final(whole.trials[:to]), to - len(now) + blind
        for improvement in IMPROVEMENTS:
            target = best - improvement
            if target <= 0:
                continue
            yield Asked(
                whole.table,
                *at,
                improvement,
                forecast.margin(wers, improvement),
                over,
                more,
                tuple((math.log(target) - look.log_wer) / look.spread for look in looks),
                forecast.chance_to_improve(wers, looks, over, more, improvement),
                last <= target,
            )


def counts(whole: Replayed, workers: int, rng: np.random.Generator) -> Iterator[Count]:
    """Trials that a random number of epochs would still pay for, at a random moment."""
    every = list(moments(whole, workers))
    spent = [sum(trial.epochs for trial in now) for now in every]
    place = int(rng.integers(len(every)))
    now = every[place]
    lengths = [trial.epochs for trial in now if trial.over]
    if len(lengths) < forecast.FEWEST_TRIALS or spent[place] == spent[-1]:
        return
    left = int(rng.integers(1, spent[-1] - spent[place] + 1))
    planned = whole.trials[0].run.epochs
    ahead = forecast.epochs_ahead([trial.epochs for trial in now if not trial.over], lengths, planned)
    most = len(whole.trials) - len(now)
    expected, low, high = forecast.trials_left(left - ahead, lengths, planned, most)
    then = next(n for n, total in enumerate(spent) if total >= spent[place] + left)
    begun = zip(every[then][len(now) :], whole.trials[len(now) :], strict=False)
    yield Count(low, high, expected, sum(trial.epochs / end.epochs for trial, end in begun))


def stopped(whole: Replayed, workers: int) -> Iterator[Stopped]:
    """Where the sweep would have ended, looked at each time a trial is over."""
    chances: list[tuple[int, int, float]] = []  # trials over, begun, chance
    before = 0
    for now in moments(whole, workers):
        over = sum(trial.over for trial in now)
        if over == before or len(now) == len(whole.trials):
            continue
        before, found = over, seen(now)
        if found is not None:
            wers, looks, over, blind = found
            more = len(whole.trials) - len(now) + blind
            chance = forecast.chance_to_improve(wers, looks, over, more, IMPROVEMENTS[0])
            chances.append((over, len(now), chance))
    for fewest, below in STOPS:
        ends = (begun for over, begun, chance in chances if over >= fewest and chance < below)
        begun = next(ends, len(whole.trials))
        kept = whole.trials[:begun]
        share = sum(trial.epochs for trial in kept) / whole.epochs
        yield Stopped(whole.table, fewest, below, begun < len(whole.trials), share, final(kept) - whole.best)


_tables: dict[str, list[Recorded]] = {}


def _begin(curves: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    _tables.update(read_tables(curves))


def _replayed(task: tuple[str, int | None, int]) -> Found:
    """All configurations over one table, without one group of its runs."""
    table, group, sweeps = task
    runs = [run for place, run in enumerate(_tables[table]) if group is None or place % GROUPS != group]
    found = Found([], [], [])
    for (sampler, pruner, workers), seed in product(CONFIGURATIONS, range(sweeps)):
        whole = swept(runs, sampler, pruner, workers, seed)
        rng = np.random.default_rng(mixed_seed(seed, f"{table} {sampler} {pruner} {workers}"))
        found.asked.extend(asked(whole, (sampler, pruner, workers, seed), rng))
        if group is None:
            found.counts.extend(counts(whole, workers, rng))
            found.stopped.extend(stopped(whole, workers))
    return found


# measures

Vector = np.ndarray[Any, np.dtype[np.float64]]


def features(rows: Sequence[Asked]) -> tuple[Vector, Vector, Vector, Vector, Vector]:
    """Margin, trials over, more trials, deviations (NaN where there are fewer), happened."""
    most = max((len(row.deviations) for row in rows), default=0)
    deviations = np.full((len(rows), most), np.nan)
    for place, row in enumerate(rows):
        deviations[place, : len(row.deviations)] = row.deviations
    columns = [(row.margin, row.over, row.more, row.happened) for row in rows]
    margin, over, more, happened = np.array(columns, dtype=float).T
    return margin, over, more, deviations, happened


def stated(caution: float, of: tuple[Vector, ...]) -> Vector:
    """`forecast.chance_to_improve` with another `CAUTION`, for many at once."""
    margin, over, more, deviations, _ = of
    worth = more * np.exp(-margin)
    reached = np.nan_to_num(ndtr(deviations - caution))
    result: Vector = 1 - over / (over + worth) * np.prod(1 - reached, axis=1)
    return result


def fitted(rows: Sequence[Asked]) -> float:
    """The caution of greatest likelihood; each corpus counts the same."""
    of = features(rows)
    tables = np.array([row.table for row in rows])
    weights = np.array([1 / np.sum(tables == table) for table in tables])

    def loss(caution: float) -> float:
        chance, happened = np.clip(stated(caution, of), 1e-3, 1 - 1e-3), of[-1]
        return float(-np.sum(weights * np.log(np.where(happened == 1, chance, 1 - chance))))

    return float(minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded").x)


def bins_of(chance: Vector, happened: Vector) -> list[dict[str, float]]:
    """Mean stated chance and share that happened, of each bin that holds any."""
    place = np.minimum((chance * BINS).astype(int), BINS - 1)
    return [
        {
            "stated": float(chance[place == k].mean()),
            "happened": float(happened[place == k].mean()),
            "forecasts": int((place == k).sum()),
        }
        for k in range(BINS)
        if (place == k).any()
    ]


def ece(chance: Vector, happened: Vector) -> float:
    """Expected calibration error (Naeini et al. 2015)."""
    gaps = [each["forecasts"] * abs(each["stated"] - each["happened"]) for each in bins_of(chance, happened)]
    return sum(gaps) / len(chance)


def brier(chance: Vector, happened: Vector) -> float:
    return float(np.mean((chance - happened) ** 2))


def skill(chance: Vector, happened: Vector) -> float:
    """Brier skill against always stating the share that happened, which knows the outcome: 0 says nothing, 1 all."""
    base = brier(np.full_like(chance, happened.mean()), happened)
    return 1 - brier(chance, happened) / base if base else 0.0


MEASURES: dict[str, Callable[[Vector, Vector], float]] = {"ece": ece, "brier": brier, "skill": skill}


def interval(whole: float, parts: Sequence[float]) -> tuple[float, float]:
    """95 %, from the values without one group each."""
    groups = len(parts)
    error = math.sqrt((groups - 1) / groups * sum((part - np.mean(parts)) ** 2 for part in parts))
    half = float(student_t.ppf(0.975, groups - 1)) * error
    return whole - half, whole + half


@dataclass(frozen=True)
class Scope:
    """Which forecasts a row is about."""

    name: str
    takes: Callable[[Asked], bool]
    held_out: str = ""
    """The table whose forecasts are made with the constant of the others."""


def scopes(tables: Sequence[str]) -> list[Scope]:
    first = IMPROVEMENTS[0]

    def asks(row: Asked) -> bool:
        return row.improvement == first

    def of_table(table: str) -> Callable[[Asked], bool]:
        return lambda row: asks(row) and row.table == table

    found = [Scope("all", asks)]
    found += [Scope(table, of_table(table)) for table in tables]
    found += [Scope(f"{table}, held out", of_table(table), table) for table in tables]
    found += [
        Scope(f"drawn by {name}", lambda row, name=name: asks(row) and row.sampler == name)
        for name in ("random", "tpe")
    ]  # type: ignore[misc]
    found += [
        Scope(f"pruner {name}", lambda row, name=name: asks(row) and row.pruner == name) for name in ("none", "plateau")
    ]  # type: ignore[misc]
    found += [Scope(f"workers {n}", lambda row, n=n: asks(row) and row.workers == n) for n in (1, 4)]  # type: ignore[misc]
    found.append(Scope("no trial to begin", lambda row: asks(row) and row.more == 0))
    found.append(Scope("10 trials over, or more", lambda row: asks(row) and row.over >= forecast.FEWEST_TO_STOP))
    found += [
        Scope(f"by {100 * size:g} points", lambda row, size=size: row.improvement == size)  # type: ignore[misc]
        for size in IMPROVEMENTS[1:]
    ]
    return found


def calibration(
    rows: Sequence[Asked], groups: Sequence[Sequence[Asked]], tables: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each scope."""
    found = []
    for scope in scopes(tables):
        values: list[dict[str, float]] = []
        for part in (rows, *groups):
            others = [row for row in part if row.table != scope.held_out]
            caution = fitted(others) if scope.held_out else forecast.CAUTION
            of = features([row for row in part if scope.takes(row)])
            chance, happened = stated(caution, of), of[-1]
            values.append({name: measure(chance, happened) for name, measure in MEASURES.items()})
            if part is rows:
                row: dict[str, Any] = {
                    "what": "calibration",
                    "scope": scope.name,
                    "held_out": bool(scope.held_out),
                    "caution": round(caution, 3),
                    "forecasts": len(chance),
                    "stated": round(float(chance.mean()), 4),
                    "happened": round(float(happened.mean()), 4),
                    "bins": bins_of(chance, happened),
                }
        for name in MEASURES:
            low, high = interval(values[0][name], [each[name] for each in values[1:]])
            row |= {name: round(values[0][name], 4), f"{name}_low": round(low, 4), f"{name}_high": round(high, 4)}
        found.append(row)
    return found


def count_row(some: Sequence[Count]) -> dict[str, Any]:
    inside = np.mean([each.low - 0.5 <= each.happened <= each.high + 0.5 for each in some])
    error = np.mean([abs(each.expected - each.happened) for each in some])
    return {
        "what": "trials",
        "forecasts": len(some),
        "inside_80_percent": round(float(inside), 4),
        "mean_error_trials": round(float(error), 3),
    }


def stop_rows(some: Sequence[Stopped]) -> list[dict[str, Any]]:
    rows = []
    for fewest, below in STOPS:
        of = [each for each in some if (each.fewest, each.below) == (fewest, below)]
        rows.append(
            {
                "what": "stop",
                "fewest_trials": fewest,
                "chance_below": below,
                "sweeps": len(of),
                "stopped_share": round(float(np.mean([each.stopped for each in of])), 4),
                "epochs_saved_share": round(1 - float(np.mean([each.epochs_share for each in of])), 4),
                "lost_points": round(100 * float(np.mean([each.lost for each in of])), 4),
                "lost_half_a_point_share": round(float(np.mean([each.lost >= IMPROVEMENTS[0] for each in of])), 4),
            }
        )
    return rows


# page


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    shipped = [row for row in rows if row["what"] == "calibration"]
    lines = [
        "| forecasts | number | stated, mean | happened | ECE (95 %) | Brier score | against the base rate (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in shipped:
        scope = f"{row['scope']} ({row['caution']:.2f})" if row["held_out"] else row["scope"]
        lines.append(
            f"| {scope} | {row['forecasts']:,} | {percent(row['stated'])} | {percent(row['happened'])} | "
            f"{row['ece']:.3f} ({max(0, row['ece_low']):.3f} to {row['ece_high']:.3f}) | {row['brier']:.3f} | "
            f"{percent(row['skill'], 0)} ({percent(row['skill_low'], 0)} to {percent(row['skill_high'], 0)}) |"
        )
    (counted,) = (row for row in rows if row["what"] == "trials")
    lines += [
        "",
        f"How many more trials a budget of epochs pays for: {percent(counted['inside_80_percent'], 0)} of "
        f"{counted['forecasts']:,} fell inside the 80 % interval, half a trial allowed at its ends; the mean error was "
        f"{counted['mean_error_trials']:.1f} trials.",
        "",
        "| trials at least | chance below | ended early | epochs saved | points of WER lost | half or more lost |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['fewest_trials']} trials | {percent(row['chance_below'], 0)} | {percent(row['stopped_share'], 0)} | "
        f"{percent(row['epochs_saved_share'])} | {row['lost_points']:.2f} | {percent(row['lost_half_a_point_share'])} |"
        for row in rows
        if row["what"] == "stop"
    ]
    return "\n".join(lines)


def as_picture(rows: Sequence[dict[str, Any]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.9), layout="constrained")
    FigureCanvasAgg(figure)
    by_scope = {row["scope"]: row for row in rows if row["what"] == "calibration"}
    held = [row for row in by_scope.values() if row["held_out"]]
    colours = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#aa3377", "#bbbbbb")
    titles = ("as shipped, all corpora", "constant of the three other corpora")
    for axes, some, title in zip(figure.subplots(1, 2), ([by_scope["all"]], held), titles, strict=True):
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
        for row, colour in zip(some, ["#ee6677"] if len(some) == 1 else colours, strict=False):
            x, y, n = ([each[key] for each in row["bins"]] for key in ("stated", "happened", "forecasts"))
            label = f"{row['scope'].partition(',')[0]}: ECE {row['ece']:.3f}"
            axes.plot(x, y, marker="o", markersize=4, color=colour, label=label)
            if len(some) == 1:
                for at, (left, up, many) in enumerate(zip(x, y, n, strict=True)):
                    below = at % 2 == 0
                    axes.annotate(
                        f"{many:,}", (left, up), (6, -10 if below else 6), textcoords="offset points", fontsize=7
                    )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="chance stated", ylabel="share that happened", title=title)
        axes.legend(loc="upper left", fontsize=8, frameon=False)
        axes.set_aspect("equal")
    figure.savefig(PICTURE, dpi=120, metadata={"Software": None})


def write_docs(rows: Sequence[dict[str, Any]]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{as_markdown(rows)}\n\n{END}{after}", encoding="utf-8")
    as_picture(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects instead of tables")
    parser.add_argument("--sweeps", type=int, default=24, help="of each table, sampler, pruner and number of workers")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--curves", type=Path, default=CURVES, help="a folder of curve tables")
    parser.add_argument("--docs", action="store_true", help="write docs/explanation/forecast.md's numbers and picture")
    arguments = parser.parse_args()
    try:
        tables = list(read_tables(arguments.curves))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tasks = [(table, group, arguments.sweeps) for group in (None, *range(GROUPS)) for table in tables]
    found: list[Found] = []
    with multiprocessing.get_context("spawn").Pool(arguments.processes, _begin, (arguments.curves,)) as pool:
        for one in pool.imap(_replayed, tasks):
            found.append(one)
            print(f"[{len(found)}/{len(tasks)}]", file=sys.stderr, flush=True)
    parts = [found[start : start + len(tables)] for start in range(0, len(found), len(tables))]
    whole, *groups = [[row for one in part for row in one.asked] for part in parts]
    rows = calibration(whole, groups, tables)
    rows.append(count_row([each for one in parts[0] for each in one.counts]))
    rows += stop_rows([each for one in parts[0] for each in one.stopped])
    print(f"CAUTION fitted to all tables: {fitted(whole):.2f}", file=sys.stderr)
    if arguments.docs:
        write_docs(rows)
    print(json.dumps(rows, allow_nan=False) if arguments.json else as_markdown(rows))
    worst = max(
        row["ece"] for row in rows if row["what"] == "calibration" and (row["scope"] == "all" or row["held_out"])
    )
    return 0 if worst <= AIM else 1


if __name__ == "__main__":
    raise SystemExit(main())
