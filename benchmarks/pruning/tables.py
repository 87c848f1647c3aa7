"""The recorded curves as a replay reads them: one `Recorded` a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from model.early_stopping import why_ended
from model.floors import Floors
from model.types import EpochReport, TrainingConfig
from sweeps.pruning import History

CURVES = Path(__file__).parents[1] / "curves"

LEARNED_MARGIN = 0.05
"""A run learned if its best WER is this much below the best constant sentence's."""

FALLING_SHARE = 0.02
"""A run is not decided if its dev loss still falls by more than this share over its last quarter."""


@dataclass(frozen=True)
class Recorded:
    """One run of a table, trained to its last epoch whatever a rule would have said."""

    table: str
    name: str
    lane: str
    """What is broken about its data; empty where nothing is."""
    says: str
    """The finding that names that rightly."""
    check: tuple[str, ...]
    """Codes of what the check of its corpus found before the first step."""
    config: TrainingConfig
    floors: Floors
    dev_sequences: int
    reports: tuple[EpochReport, ...]

    @cached_property
    def wers(self) -> list[float]:
        return [report.wer for report in self.reports]

    @cached_property
    def best(self) -> float:
        return min(wer for wer in self.wers if math.isfinite(wer))

    @property
    def epochs(self) -> int:
        return len(self.reports)

    @cached_property
    def end(self) -> int:
        """The epoch after which it ends by itself: its last, or one that diverged."""
        wer = self.floors.constant_wer
        ends = (n for n in range(1, self.epochs) if why_ended(self.reports[:n], self.config, wer))
        return next(ends, self.epochs)

    @property
    def learned(self) -> bool:
        return self.best <= self.floors.constant_wer - LEARNED_MARGIN

    @cached_property
    def decided(self) -> bool:
        """Whether more epochs would hardly have changed what it came to: it learned, or its loss has come to rest."""
        if self.learned:
            return True
        quarter = max(2, self.epochs // 4)
        losses = [report.value("dev/loss") for report in self.reports]
        before, after = min(losses[:-quarter]), min(losses[-quarter:])
        return not after < before * (1 - FALLING_SHARE)

    @cached_property
    def histories(self) -> tuple[History, ...]:
        """What a rule sees after each epoch; the run's place in the table is its number."""
        return tuple(self.history(n) for n in range(1, self.epochs + 1))

    @cached_property
    def stopped(self) -> tuple[History, ...]:
        """The same once a rule stopped it there."""
        return tuple(self.history(n, ended=True, stopped=True) for n in range(1, self.epochs + 1))

    @cached_property
    def whole(self) -> History:
        """The run once it ended by itself."""
        return self.history(self.end, ended=True)

    def history(self, epochs: int, *, ended: bool = False, stopped: bool = False) -> History:
        number = int(self.name) if self.name.isdigit() else 0
        return History(number, self.reports[:epochs], self.config, self.floors.constant_wer, ended, stopped)


def read_run(file: Path) -> Recorded:
    """One recorded run."""
    content = json.loads(file.read_text(encoding="utf-8"))
    curve = content["curve"]
    fields = ("step", "skipped_steps", "lr_time", "seconds", "not_finite")
    metrics = {key: column for key, column in curve.items() if key not in fields}
    reports = tuple(
        EpochReport(
            epoch=i + 1,
            step=curve["step"][i],
            metrics={key: math.nan if column[i] is None else column[i] for key, column in metrics.items()},
            steps_in_epoch=content["steps_in_epoch"],
            skipped_steps=curve["skipped_steps"][i],
            lr_time=curve["lr_time"][i],
            seconds=curve["seconds"][i],
            not_finite=curve["not_finite"][i],
        )
        for i in range(len(curve["step"]))
    )
    return Recorded(
        content["table"],
        file.stem,
        content["lane"],
        content["says"],
        tuple(content.get("check", ())),
        TrainingConfig.model_validate(content["config"]),
        Floors(**{key: math.nan if value is None else value for key, value in content["floors"].items()}),
        content["dev_sequences"],
        reports,
    )


def read_tables(folder: Path = CURVES, names: Sequence[str] = ()) -> dict[str, list[Recorded]]:
    """Table name to its runs on whole data, in order of their numbers."""
    return {name: [run for run in runs if not run.lane] for name, runs in read_all(folder, names).items()}


def read_lanes(folder: Path = CURVES, names: Sequence[str] = ()) -> dict[str, list[Recorded]]:
    """Table name to its runs on broken data."""
    return {name: [run for run in runs if run.lane] for name, runs in read_all(folder, names).items()}


def read_all(folder: Path, names: Sequence[str]) -> dict[str, list[Recorded]]:
    found = {place.name: place for place in sorted(folder.iterdir()) if place.is_dir()}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(f"{unknown[0]}: there is no such table in {folder}; there are {', '.join(found)}")
    return {
        name: [read_run(file) for file in sorted(place.glob("*.json"))]
        for name, place in found.items()
        if not names or name in names
    }
