"""A sweep in the terminal: a live table, or a plain log where there is no terminal."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeps import warm_start
from sweeps.records import EpochRow, EventRow, SweepRow, TrialRow
from sweeps.states import TrialState
from sweeps.store import Store
from sweeps.summary import (
    Conclusions,
    best_trial,
    is_audit,
    parameters,
    sections,
    sentence_about,
    trial_label,
)

Epochs = Callable[[int], list[EpochRow]]
"""Reads a trial's epochs by its id."""


class PlainLog:
    """One line for each epoch and each change of a trial."""

    def __init__(self, epochs: Epochs, out: TextIO, seen: Mapping[int, int] = MappingProxyType({})) -> None:
        """`seen`: epochs of each trial, by id, that an earlier run of the sweep has told."""
        self._epochs, self._out = epochs, out
        self._seen = dict(seen)
        self._states: dict[int, TrialState] = {}
        self._note = ""
        self._first = True

    def update(self, sweep: SweepRow, trials: list[TrialRow], note: str) -> None:
        for trial in trials:
            label = f"trial {trial_label(trial)}"
            known = self._states.get(trial.id)
            if known is None and trial.state is TrialState.WAITING:
                continue
            if known is None:  # what was over before we looked is told in a line
                self._seen.setdefault(trial.id, trial.epochs if self._first and trial.state.terminal else 0)
            if trial.state is TrialState.RUNNING and known is not TrialState.RUNNING and trial.hyperparameters:
                told = self._seen[trial.id]
                self._say(f"{label}: running{f' on after epoch {told}' if told else ''}  {parameters(trial)}")
            elif known is None and trial.state is TrialState.RUNNING:
                continue  # not asked yet
            if trial.epochs > self._seen[trial.id]:
                rows = self._epochs(trial.id)[self._seen[trial.id] :]  # may be more by now than `trial` knows of
                for row in rows:
                    self._say(f"{label}: {epoch_line(row)}")
                self._seen[trial.id] += len(rows)
            if trial.state is not known and trial.state is not TrialState.RUNNING:
                self._say(f"{label}: {trial.state.value}  {sentence_about(trial)}")
            self._states[trial.id] = trial.state
        self._first = False
        if note != self._note:
            self._say(note or "MLflow is back, its rows are being shipped")
            self._note = note

    def _say(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def epoch_line(row: EpochRow) -> str:
    """One epoch, short."""
    m = row.metrics
    wer = f"{m['dev/wer']:.1%}" if "dev/wer" in m else "not finite"
    spread = f"  spread {m['spread/time']:.3f}" if "spread/time" in m else ""  # a trainer need not report more than WER
    rate = f"  lr {m['optim/lr']:.2e}" if "optim/lr" in m else ""
    seconds = f"  {row.seconds:.1f} s" if row.seconds else ""
    return f"epoch {row.epoch}  WER {wer}{spread}  {row.phase}{rate}{seconds}"


FORECAST_SECONDS = 30.0
"""How often the forecast is made anew while no trial ends."""


class LiveTable:
    """The trials as a table that follows them."""

    def __init__(self, epochs: Epochs, live: Live, forecast: Callable[[], str] = str) -> None:
        """`forecast`: asked now and then; empty where there is none."""
        self._epochs, self._live, self._forecast = epochs, live, forecast
        self._foreseen, self._foreseen_for, self._foresee_at = "", -1, 0.0
        self._last: dict[int, tuple[int, EpochRow | None]] = {}

    def update(self, sweep: SweepRow, trials: list[TrialRow], note: str) -> None:
        room = max(5, self._live.console.size.height - 8)
        shown = trials
        if len(trials) > room:  # what runs and what is best stay in sight
            shown = sorted(sorted(trials, key=_interest)[:room], key=lambda t: t.number)
        done = sum(t.state.terminal for t in trials)
        best = best_trial(trials)
        lines = [f"{done} of {sweep.budget['trials']} trials done"]
        if best is not None:
            lines.append(f"best WER {best.best_wer:.1%} (trial {trial_label(best)})")
        lines.append(f"knowing nothing {sweep.facts['constant_wer']:.1%}")
        if len(shown) < len(trials):
            lines.append(f"{len(trials) - len(shown)} trials not shown")
        table = trial_table(sweep.name, shown, self._last_row, one_line=True)
        parts: list[Table | Text] = [table, _line(" · ".join(lines))]
        if forecast := self._now_forecast(done):
            parts.append(_line(forecast))
        if note:
            parts.append(_line(note, style="yellow"))
        self._live.update(Group(*parts))

    def _now_forecast(self, done: int) -> str:
        """Asked anew when a trial is over, and else once in a while."""
        now = time.monotonic()
        if done != self._foreseen_for or now >= self._foresee_at:
            self._foreseen, self._foreseen_for, self._foresee_at = self._forecast(), done, now + FORECAST_SECONDS
        return self._foreseen

    def _last_row(self, trial: TrialRow) -> EpochRow | None:
        known = self._last.get(trial.id)
        if known is None or known[0] != trial.epochs:
            rows = self._epochs(trial.id)
            self._last[trial.id] = (trial.epochs, rows[-1] if rows else None)
        return self._last[trial.id][1]


def _interest(trial: TrialRow) -> tuple[bool, float, int]:
    wer = 9.0 if trial.best_wer is None else trial.best_wer
    return trial.state is not TrialState.RUNNING, wer, -trial.number


STYLES = {"learned": "green", "never_learned": "red", "collapsed": "red", "diverged": "red", "too_slow": "yellow"}


def _line(text: str, style: str = "") -> Text:
    """Never more than a line: what does not fit ends in an ellipsis."""
    return Text(" ".join(text.split()), style=style, no_wrap=True, overflow="ellipsis")


WIDE = 120
"""A terminal with fewer columns has no room for how a trial stood in the end, beside what it came to."""


def trial_table(
    title: str,
    trials: list[TrialRow],
    last_row: Callable[[TrialRow], EpochRow | None],
    *,
    one_line: bool = False,
    width: int = WIDE,
) -> Table:
    """Trial, parameters, epoch, WER, spread, phase, verdict; with `one_line` no trial takes more than one. Where that
    may be more, and `width` is below WIDE, the state of the last epoch is left out.
    """
    cell = _line if one_line else Text
    left_out = () if one_line or width >= WIDE else ("WER", "spread", "phase")
    table = Table(title=title, title_justify="left")
    for name in ("trial", "state", "parameters", "epoch", "WER", "best", "spread", "phase", "verdict"):
        if name not in left_out:
            right, whole = name in ("epoch", "WER", "best", "spread"), name not in ("trial", "parameters")
            table.add_column(
                cell(name),
                overflow="fold",
                justify="right" if right else "left",
                no_wrap=bool(left_out) and whole,
            )
    for trial in trials:
        row = last_row(trial)
        metrics = row.metrics if row else {}
        wer, spread = metrics.get("dev/wer"), metrics.get("spread/time")
        verdict = trial.verdict or ""
        cells = {
            "trial": cell(trial_label(trial)),
            "state": cell(trial.state.value),
            "parameters": cell(parameters(trial)),
            "epoch": cell(str(trial.epochs or "")),
            "WER": cell("" if wer is None else f"{wer:.1%}"),
            "best": cell("" if trial.best_wer is None else f"{trial.best_wer:.1%}"),
            "spread": cell("" if spread is None else f"{spread:.2f}"),
            "phase": cell(row.phase if row else "checking" if trial.state is TrialState.RUNNING else ""),
            "verdict": cell(verdict, style=STYLES.get(verdict, "")),
        }
        table.add_row(*(text for name, text in cells.items() if name not in left_out))
    return table


@contextmanager
def view(
    epochs: Epochs,
    *,
    plain: bool,
    out: TextIO,
    seen: Mapping[int, int] = MappingProxyType({}),
    forecast: Callable[[], str] = str,
) -> Iterator[PlainLog | LiveTable]:
    """The right one of the two for where the output goes."""
    console = Console(file=out, markup=False, emoji=False, highlight=False)
    if plain or not console.is_terminal:
        yield PlainLog(epochs, out, seen)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield LiveTable(epochs, live, forecast)


def print_summary(
    sweep: SweepRow,
    trials: list[TrialRow],
    latest: Mapping[int, EpochRow],
    command: str | None,
    dashboard: str,
    found: Conclusions,
    out: TextIO,
) -> None:
    """The table once more, the best trial, the pruned and the named ones, what was found out, the command and the
    dashboard.
    """
    width = None if out.isatty() else 160
    console = Console(file=out, width=width, soft_wrap=False, markup=False, emoji=False, highlight=False)
    console.print(trial_table(sweep.name, trials, lambda t: latest.get(t.number), width=console.width))
    best = best_trial(trials)

    def say(text: str) -> None:
        """As it stands: a command must not be broken."""
        console.print(text, soft_wrap=True)

    def tell(sentence: str, indent: str = "  ") -> None:
        """In a terminal no line breaks within a word."""
        wide = console.width if out.isatty() else len(indent) + len(sentence)
        further = f"{indent}  "
        say(textwrap.fill(sentence, wide, initial_indent=indent, subsequent_indent=further, break_on_hyphens=False))

    state = ", ".join(filter(None, [sweep.state.value, sweep.reason]))
    say(f"\nSweep {sweep.name}: {state}. {sweep.seconds:.0f} s in all.")
    say(f"The best constant sentence ({sweep.facts['constant_sentence']!r}) scores {sweep.facts['constant_wer']:.1%}.")
    if best is not None:
        say(f"Best: trial {trial_label(best)}, dev WER {best.best_wer:.1%} at epoch {best.best_epoch}.")
    if began_from := warm_start.in_words(sweep):
        say(began_from)
    told = [
        (heading, [f"{sweep.name}/{t.name or t.number}: {sentence_about(t)}" for t in chosen])
        for heading, chosen in (
            ("Pruned", [t for t in trials if t.state is TrialState.PRUNED and not is_audit(t, found)]),
            ("Failed", [t for t in trials if t.state is TrialState.FAILED]),
            ("Named", [t for t in trials if t.name]),
        )
    ]
    condemned = [(t, found.decisions[t.number]) for t in trials if is_audit(t, found)]
    audits = [
        f"{sweep.name}/{t.name or t.number}: {d.reason} {d.counterfactual} It ran on: {sentence_about(t)}"
        for t, d in condemned
    ]
    told += [("Condemned, and run on as audits", audits), *sections(sweep, trials, found)]
    for heading, sentences in told:
        if sentences:
            say("")
            tell(f"{heading}:", indent="")
            for sentence in sentences:
                tell(sentence)
    if command:
        say(f"\nTrain the best configuration:\n  {command}")
    say(f"\nDashboard:\n  {dashboard}")


def interactive() -> bool:
    """Whether a person sits in front: both ends are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class EventLog:
    """What happens to sweeps from now on, a line an event."""

    def __init__(self, store: Store, wanted: Callable[[EventRow], bool]) -> None:
        self._store, self._wanted = store, wanted
        self._seen = {sweep.id: store.last_event(sweep.id) for sweep in store.sweeps()}
        self.refused = False
        """Whether a worker had not what a sweep needs."""

    def show(self, sweeps: Iterable[SweepRow], out: TextIO) -> bool:
        """Print what is new; returns whether a trial ended."""
        ended = False
        for sweep in sweeps:
            for event in self._store.events(sweep.id, after=self._seen.get(sweep.id, 0)):
                self._seen[sweep.id] = event.id or 0
                if self._wanted(event):
                    self.refused |= event.kind == "worker_refused"
                    ended |= event.kind in ("complete", "pruned")
                    print(event_line(sweep, event), file=out, flush=True)
        return ended


def event_line(sweep: SweepRow, event: EventRow) -> str:
    """An event in words."""
    what = sweep.name if event.trial_number is None else f"{sweep.name}/{event.trial_number}"
    return f"{what}: {event.kind.replace('_', ' ')}{f': {event.text}' if event.text else ''}"
