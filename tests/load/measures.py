"""From the calls of all processes to rates, latencies and memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from tests.load.timed import LAST, Call

PARTS = 10
WARM = 0.1
"""Memory is looked at from this share of the trials on: what a process imports late is in by then."""


@dataclass(frozen=True)
class Latency:
    """Of one step, in milliseconds."""

    calls: int
    median_ms: float
    p99_ms: float
    ms_per_trial: float
    """Of all calls together, a trial's share."""


@dataclass(frozen=True)
class Memory:
    """What a process held, in MiB: the median of all."""

    warm_mib: float
    end_mib: float
    growth: float
    """MiB for each 1,000 trials of the sweep, from WARM on."""
    worst_growth: float
    """Of the process that grew most."""


def latencies(calls: Sequence[Call], trials: int) -> dict[str, Latency]:
    """By step."""
    by_step: dict[str, list[float]] = defaultdict(list)
    for call in calls:
        by_step[call.step].append(1e3 * call.seconds)
    return {
        step: Latency(len(times), median(times), sorted(times)[int(0.99 * len(times))], sum(times) / trials)
        for step, times in by_step.items()
    }


def rates(calls: Sequence[Call]) -> list[float]:
    """Trials a second, in each tenth of the trials, in the order in which they ended."""
    ends = _ends(calls)
    begin = min(call.end - call.seconds for call in calls if call.step == "claim")
    parts = [ends[len(ends) * part // PARTS - 1] for part in range(1, PARTS + 1)]
    return [len(ends) / PARTS / max(1e-9, last - first) for first, last in pairwise([begin, *parts])]


def seconds(calls: Sequence[Call]) -> float:
    """From the first claim to the end of the last trial."""
    return _ends(calls)[-1] - min(call.end - call.seconds for call in calls if call.step == "claim")


def memory(calls: Sequence[Call]) -> Memory:
    """Of the processes that ended a trial both before and after WARM."""
    ends = _ends(calls)
    warm_at = ends[int(WARM * len(ends))]
    held: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for call in calls:
        if call.step == LAST and call.rss:
            held[call.process].append((call.end, call.rss))
    warm, last = [], []
    for of_process in held.values():
        of_process.sort()
        before = [rss for end, rss in of_process if end <= warm_at]
        if before and of_process[-1][0] > warm_at:
            warm.append(before[-1] / 2**20)
            last.append(of_process[-1][1] / 2**20)
    thousands = (1 - WARM) * len(ends) / 1_000
    growths = [(after - before) / thousands for before, after in zip(warm, last, strict=True)]
    if not growths:
        return Memory(0.0, 0.0, 0.0, 0.0)
    return Memory(median(warm), median(last), median(growths), max(growths))


def _ends(calls: Sequence[Call]) -> list[float]:
    """When each trial ended."""
    return sorted(call.end for call in calls if call.step == LAST)
