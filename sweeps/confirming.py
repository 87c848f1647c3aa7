"""A confirmation: what the best configurations of a sweep, and a baseline, came to on the same new seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from model.corpus import data
from model.corpus.data import Corpus
from model.diagnosis import counted
from model.types import BUILT_IN
from sweeps.checkpoints import trial_files
from sweeps.confirmation import CONFIRMED, FACT, FEWEST_SEEDS, Compared, Measured, Table, compared, measured
from sweeps.confirmation_spec import run_name
from sweeps.errors import SweepError
from sweeps.judging import reread
from sweeps.records import ScoreRow, SweepRow, TrialRow
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.summary import best_trial

Split: TypeAlias = Literal["dev", "test"]

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
"""How a run ends that counts; pruned is one that diverged."""


@dataclass(frozen=True)
class Confirmed:
    """One configuration, trained with each seed."""

    name: str
    """`trial-12`, or the name that the trial had in the sweep."""
    trial: int
    """Its number in the sweep that is confirmed."""
    runs: tuple[int, ...]
    """Their numbers in the confirmation, by seed."""
    values: dict[str, Any]
    """Training-config fields in which it was given a value, but for epochs and seeds."""
    baseline: bool
    measured: Measured
    """On the sentences that decide."""
    dev: Measured
    sweep_wer: float | None
    """Dev WER that it was chosen by (fraction); None: it had none."""
    sweep_epochs: int
    """That it had in the sweep."""
    again: Measured
    """The lowest dev WER within as many epochs, with the new seeds: what `sweep_wer` is when nobody chooses."""

    def as_json(self) -> dict[str, Any]:
        whole = {"measured": self.measured.as_json(), "dev": self.dev.as_json(), "again": self.again.as_json()}
        return {**asdict(self), "runs": list(self.runs), **whole}

    def luck(self, epochs: int) -> str:
        """What became of the number that it was chosen by; empty where there was none.

        Args:
            epochs: that its runs had at most.
        """
        if self.sweep_wer is None or self.sweep_epochs == 0:
            return ""
        if epochs < self.sweep_epochs:
            return (
                f"{self.name}: {self.sweep_wer:.1%} dev WER in the sweep, after up to {self.sweep_epochs} epochs; with "
                f"{epochs} nothing tells how much of it was luck."
            )
        lucky = 100 * (self.again.wer - self.sweep_wer)
        of_it = f"{lucky:.1f} points of it were luck" if lucky >= 0.05 else "none of it was luck"
        return (
            f"{self.name}: {self.sweep_wer:.1%} dev WER in the sweep; with {counted(len(self.runs), 'new seed')} and "
            f"as many epochs ({self.sweep_epochs}) {in_words(self.again)}: {of_it}."
        )


@dataclass(frozen=True)
class Confirmation:
    """What a confirmation came to, once each of its runs was scored."""

    sweep: str
    """The confirmation's own name."""
    parent: str
    """The sweep it confirms."""
    against: str
    """The name of the baseline's configuration."""
    seeds: int
    epochs: int
    """At most, of each run."""
    split: Literal["dev", "test", "run"]
    """What decides: the sentences of a split, or the dev WERs of whole runs."""
    sentences: int
    """Of that split; 0 where only WERs of whole runs are known."""
    configurations: tuple[Confirmed, ...]
    """The baseline first, then by rank in the sweep."""
    pairs: tuple[Compared, ...]
    """Each configuration but the baseline, against it."""
    test_scored_at: float | None
    """When test was looked at (UNIX seconds); None: it was not."""
    earlier_looks: tuple[str, ...]
    """Sweeps that looked at the test split of this corpus before."""
    notes: tuple[str, ...]
    """What limits it; a sentence each."""

    @property
    def best(self) -> Confirmed | None:
        """Of those that are better than the baseline the one with the lowest WER; None where none is shown to be."""
        better = {pair.name for pair in self.pairs if pair.verdict == "better"}
        shown = [each for each in self.configurations if each.name in better]
        return min(shown, key=lambda each: each.measured.wer, default=None)

    @property
    def decided(self) -> Confirmed:
        """What to train: the best, or the baseline where nothing is shown to be better."""
        return self.best or next(each for each in self.configurations if each.baseline)

    @property
    def sentence(self) -> str:
        """The decision."""
        best = self.best
        if best is None:
            return f"Nothing is shown to be better than {self.against}: train that, or confirm with more seeds."
        return f"Train {best.name}: its WER is {in_words(best.measured)}, and it is better than {self.against}."

    @property
    def said(self) -> list[str]:
        """Everything there is to say, the decision first."""
        luck = [said for each in self.configurations if (said := each.luck(self.epochs))]
        return [self.sentence, *(pair.sentence for pair in self.pairs), *luck, *self.notes]

    def as_json(self) -> dict[str, Any]:
        parts = {
            "configurations": [each.as_json() for each in self.configurations],
            "pairs": [pair.as_json() for pair in self.pairs],
            "earlier_looks": list(self.earlier_looks),
            "notes": list(self.notes),
            "best": self.best and self.best.name,
            "sentence": self.sentence,
        }
        return {**asdict(self), **parts}


def in_words(found: Measured) -> str:
    """`14.2 % (12.9 to 15.5)`."""
    interval = "" if found.low is None or found.high is None else f" ({100 * found.low:.1f} to {100 * found.high:.1f})"
    return f"{found.wer:.1%}{interval}"


def confirmation_of(store: Store, sweep: SweepRow) -> Confirmation | None:
    """What a confirmation came to; of a sweep that is none, the latest one of it. None: there is none, or not all of
    its runs are scored.
    """
    if FACT in sweep.facts:
        return _result(store, sweep)
    found = (_result(store, each) for each in reversed(store.sweeps()) if confirms(each, sweep))
    return next((each for each in found if each is not None), None)


def run_of(store: Store, found: Confirmation, chosen: Confirmed) -> TrialRow | None:
    """The run of a configuration with the lowest dev WER; None where none of them has one."""
    sweep = store.find_sweep(found.sweep)
    return best_trial([t for t in store.trials(sweep.id) if t.number in chosen.runs]) if sweep is not None else None


def confirms(sweep: SweepRow, parent: SweepRow) -> bool:
    """Whether a sweep is a confirmation of the other one, and not of another one that had its name."""
    about = sweep.facts.get(FACT)
    return about is not None and (about["parent"], about["created_at"]) == (parent.name, parent.created_at)


# scoring


def score(
    store: Store,
    sweep: SweepRow,
    corpus: Corpus,
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> None:
    """Read dev, and test if there is one, with the best checkpoint of each run, and keep how each sentence was read.
    What was read before is not read again, so it may be interrupted.

    Args:
        folder: of the sweep's checkpoints.

    Raises:
        SweepError: a run failed, or its checkpoint is not here; test was not looked at then.
    """
    trials = store.trials(sweep.id)
    _check_all_ended(sweep, trials)
    if sweep.facts.get("trainer", BUILT_IN) == BUILT_IN:
        known = {(row.trial_id, row.split) for row in store.scores(sweep.id)}
        splits = [split for split in (corpus.dev, corpus.test) if split is not None]
        missing = [t for t in trials if any((t.id, split.name) not in known for split in splits)]
        for trial in missing:
            file = trial_files(folder, trial.number).best
            if trial.best_epoch is not None and not file.exists():
                raise SweepError(
                    f"{sweep.name}/{trial.name}: its best checkpoint is not here ({file}): confirm where it was "
                    "trained, or name the folder with --checkpoints; test was not looked at"
                )
        for done, trial in enumerate(missing, start=1):
            if should_stop():
                return
            rows = [_scored(trial, split, folder) for split in splits if (trial.id, split.name) not in known]
            store.add_scores(sweep.id, rows)
            progress("scoring", done, len(missing))
    found = _result(store, reread(store, sweep))
    if found is None:
        raise SweepError(f"sweep {sweep.name!r} is not complete: the same command goes on")
    keep(store, sweep, found)


def keep(store: Store, sweep: SweepRow, found: Confirmation) -> None:
    """What it says is a fact of the confirmation and of the sweep it confirms, for their reports. Done again it changes
    nothing.
    """
    fact = {CONFIRMED: {"sweep": sweep.name, "sentences": found.said}}
    for each in (sweep, store.find_sweep(found.parent)):
        if (
            each is not None
            and (each is sweep or confirms(sweep, each))
            and each.facts.get(CONFIRMED) != fact[CONFIRMED]
        ):
            store.update_facts(each.id, fact)


def _check_all_ended(sweep: SweepRow, trials: Sequence[TrialRow]) -> None:
    for trial in trials:
        if trial.state not in ENDED:
            raise SweepError(
                f"{sweep.name}/{trial.name} is {trial.state}{f' ({trial.reason})' if trial.reason else ''}: a "
                f"comparison takes every seed of every configuration; mend that, `sweeps delete {sweep.name}`, and "
                "confirm again"
            )


def _scored(trial: TrialRow, split: data.Split, folder: Path) -> ScoreRow:
    """A run that never had a finite WER reads nothing: every word of it is wrong."""
    words = [len(reference.split()) for reference in split.references]
    errors = words
    if trial.best_epoch is not None:
        from model.checkpoint import read
        from model.decoding import greedy_errors  # torch: only who scores waits for it

        errors, words = greedy_errors(read(trial_files(folder, trial.number).best), split)
    name: Split = "test" if split.name == "test" else "dev"
    return ScoreRow(trial.id, name, trial.best_epoch or 0, list(split.ids), errors, words)


# the result


def _result(store: Store, sweep: SweepRow) -> Confirmation | None:
    about = sweep.facts[FACT]
    trials = {trial.name: trial for trial in store.trials(sweep.id)}
    seeds = range(1, about["seeds"] + 1)
    runs = {c["name"]: [trials.get(run_name(c["name"], seed)) for seed in seeds] for c in about["configurations"]}
    flat = [trial for of in runs.values() for trial in of]
    if sweep.state is not SweepState.COMPLETE or any(t is None or t.state not in ENDED for t in flat):
        return None
    whole: dict[str, list[TrialRow]] = {name: [t for t in of if t is not None] for name, of in runs.items()}
    scores = {(row.trial_id, row.split): row for row in store.scores(sweep.id)}
    own = sweep.facts.get("trainer", BUILT_IN) != BUILT_IN
    wanted: tuple[Split, ...] = () if own else ("dev", "test") if about["test_sentences"] else ("dev",)
    if any((t.id, split) not in scores for of in whole.values() for t in of for split in wanted):
        return None

    def table(name: str, split: Split) -> Table:
        if own:
            return _column([1.0 if t.best_wer is None else t.best_wer for t in whole[name]])
        return np.array([scores[t.id, split].errors for t in whole[name]], dtype=np.float64)

    def words(split: Split) -> Table:
        first = whole[about["against"]][0]
        return np.ones(1) if own else np.array(scores[first.id, split].words, dtype=np.float64)

    decides: Split = "test" if "test" in wanted else "dev"
    errors = {name: table(name, decides) for name in whole}
    configurations = tuple(
        Confirmed(
            name=each["name"],
            trial=each["trial"],
            runs=tuple(t.number for t in whole[each["name"]]),
            values=each["values"],
            baseline=each["name"] == about["against"],
            measured=measured(errors[each["name"]], words(decides)),
            dev=measured(table(each["name"], "dev"), words("dev")),
            sweep_wer=each.get("wer"),
            sweep_epochs=each["epochs"],
            again=measured(
                _column([_best_within(store, t, each["epochs"] or about["epochs"]) for t in whole[each["name"]]]),
                np.ones(1),
            ),
        )
        for each in about["configurations"]
    )
    scored_at = min((row.scored_at or math.inf for row in scores.values() if row.split == "test"), default=None)
    found = Confirmation(
        sweep=sweep.name,
        parent=about["parent"],
        against=about["against"],
        seeds=about["seeds"],
        epochs=about["epochs"],
        split="run" if own else decides,
        sentences=0 if own else len(words(decides)),
        configurations=configurations,
        pairs=tuple(compared(errors, words(decides), about["against"])),
        test_scored_at=scored_at,
        earlier_looks=_earlier(store, sweep, scored_at),
        notes=(),
    )
    lost = [str(t.name) for of in whole.values() for t in of if t.best_wer is None]
    return replace(found, notes=tuple(_notes(found, about, sweep, lost)))


def _column(wers: Sequence[float]) -> Table:
    """WERs of whole runs as a table of one sentence of one word."""
    return np.array(wers, dtype=np.float64)[:, None]


def _best_within(store: Store, trial: TrialRow, epochs: int) -> float:
    """The lowest dev WER of a run up to that epoch; 1 where there is none, as nothing was read."""
    rows = store.epochs(trial.id)
    return min((row.metrics["dev/wer"] for row in rows if row.epoch <= epochs and "dev/wer" in row.metrics), default=1)


def _earlier(store: Store, sweep: SweepRow, scored_at: float | None) -> tuple[str, ...]:
    if scored_at is None:
        return ()
    looks, corpus = store.looks_at_test(), sweep.facts.get("corpus_hash")
    same = [each for each in store.sweeps() if each.facts.get("corpus_hash") == corpus and each.id != sweep.id]
    return tuple(each.name for each in same if looks.get(each.id, math.inf) < scored_at)


def _notes(found: Confirmation, about: Mapping[str, Any], sweep: SweepRow, lost: Sequence[str]) -> list[str]:
    said = [
        f"Each of the {counted(len(found.configurations), 'configuration')} was trained with "
        f"{counted(found.seeds, 'seed')} that the sweep had not, up to {found.epochs} epochs (the sweep: up to "
        f"{about['epochs_before']}); patience may end a run earlier, and its epoch of the lowest dev WER counts."
    ]
    if found.seeds == 1:
        said.append("With one seed no verdict is possible: how far seeds differ is not known.")
    elif found.seeds < FEWEST_SEEDS:
        said.append(f"From {found.seeds} seeds intervals are very wide; 5 tell far more.")
    if found.split == "test" and found.test_scored_at is not None:
        at = datetime.fromtimestamp(found.test_scored_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        before = ", ".join(found.earlier_looks)
        said.append(
            f"Test, {counted(found.sentences, 'sentence')}: scored once, at {at}; "
            f"{counted(len(found.earlier_looks), 'earlier confirmation')} looked at the test split of this corpus"
            + (f" ({before}): what was chosen by those results is flattered by them." if before else ".")
        )
    elif found.split == "dev":
        said.append(
            f"The corpus has no test split. Dev ({counted(found.sentences, 'sentence')}) decides, which also chose the "
            "epoch of each run: that flatters all configurations alike."
        )
    else:
        said.append(
            f"Only {sweep.facts['trainer']} can load its checkpoints: one dev WER a run is all that is known, and the "
            "verdicts are of the seeds alone."
        )
    if lost:
        said.append(f"Counted as reading nothing (WER 100 %), as they never had a finite WER: {', '.join(lost)}.")
    return said
