"""What a sweep came to, as plain values and as text. Pure: rows in, words out."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.corpus.data import CorpusConfig
from model.diagnosis import TAKEOFF_MARGIN, counted
from model.types import BUILT_IN, TrainingConfig
from sweeps.audit import AuditReport, audit_report
from sweeps.confirmation import CONFIRMED
from sweeps.forecast import Forecast
from sweeps.learned import HOW, Lesson, learned
from sweeps.records import DecisionRow, EpochRow, SweepRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import TrialState

COLLAPSED = {"never_learned", "collapsed"}
"""To a person both of these read "collapsed"."""


ALWAYS_SAID = (
    *("seed", "data_seed", "threads", "epochs", "batch_size"),
    *("learning_rate", "warmup_start_factor", "dropout", "patience"),
)
"""Options that a printed command names even where they have their defaults."""


def trial_label(trial: TrialRow) -> str:
    """The trial's number, and its name if it has one."""
    return f"{trial.number} {trial.name}" if trial.name else str(trial.number)


def config_of(spec: SweepSpec, trial: TrialRow) -> TrainingConfig:
    """The full training config of a trial whose hyperparameters are known."""
    return spec.training(trial.number, trial.hyperparameters or {}, trial.overrides)


def best_trial(trials: Sequence[TrialRow]) -> TrialRow | None:
    """The trial with the lowest WER, whatever its state; the earlier of equals."""
    scored = [t for t in trials if t.best_wer is not None]
    return min(scored, key=lambda t: (t.best_wer, t.number), default=None)


def train_command(config: TrainingConfig, corpus: CorpusConfig, output: Path) -> str:
    """A command that trains exactly this, ready to paste into this system's shell."""
    return shell_line([program("python"), *train_words(config, corpus, output)])


def train_words(config: TrainingConfig, corpus: CorpusConfig, output: Path) -> list[str]:
    """The words of a command that trains exactly this, behind `python`."""
    words = ["-m", "model", "train", "--data_dir", str(corpus.path)]
    for name in ("annotations", "vocabulary"):
        if getattr(corpus, name) is not None:
            words += [f"--{name}", str(getattr(corpus, name))]
    if corpus.filter is not None:
        words += ["--filter", corpus.filter]
    if corpus.modalities:
        words += ["--modalities", ",".join(f"{name}={width}" for name, width in corpus.modalities.items())]
    if not corpus.normalise:
        words.append("--no_normalise")
    # What decides the losses to the bit, and what the sweep searched, stands there even at its default.
    chosen = {**{name: getattr(config, name) for name in ALWAYS_SAID}, **config.changed()}
    for name, value in chosen.items():
        words += [f"--{name}", repr(value) if isinstance(value, float) else str(value)]
    return [*words, "--output_dir", str(output)]


def command_of(sweep: SweepRow, trial: TrialRow, spec: SweepSpec, corpus: CorpusConfig) -> str | None:
    """The command that trains this trial again; None where a trainer of one's own did, which only a sweep runs."""
    if sweep.facts.get("trainer", BUILT_IN) != BUILT_IN:
        return None
    return train_command(config_of(spec, trial), corpus, Path(f"{sweep.name}-{trial.name or trial.number}"))


def program(name: str) -> str:
    """A program of this environment: by its name if the shell would find it, else in full."""
    here = Path(sys.executable).parent
    on_path = shutil.which(name)
    if on_path is not None and Path(on_path).parent == here:
        return name
    return shutil.which(name, path=str(here)) or (sys.executable if name == "python" else name)


def shell_line(words: Sequence[str]) -> str:
    """The words as one line for this system's shell."""
    return powershell_line(words) if sys.platform == "win32" else shlex.join(words)


def powershell_line(words: Sequence[str]) -> str:
    """The words as a line for PowerShell, where a comma makes a list, and a quoted command is only text without `&`."""
    quoted = [word if re.fullmatch(r"[\w.:/\\=+-]+", word) else "'" + word.replace("'", "''") + "'" for word in words]
    return " ".join(["&", *quoted] if quoted[0] != words[0] else quoted)


def words_of(line: str, platform: str = sys.platform) -> list[str]:
    """The words of a line that `shell_line` made on this platform."""
    if platform != "win32":
        return shlex.split(line)
    words = re.findall(r"'((?:[^']|'')*)'|([^\s']+)", line.removeprefix("& "))
    return [plain or quoted.replace("''", "'") for quoted, plain in words]


def in_shells(line: str) -> list[str]:
    """A line of `shell_line`, and where another shell would read it otherwise, the line for that one: with the `python`
    of whoever reads it, who is on another system.
    """
    words = words_of(line)[1:]
    here, there = shlex.join, powershell_line
    if sys.platform == "win32":
        here, there = there, here
    return [line] if here(words) == there(words) else [line, there(["python", *words])]


@dataclass(frozen=True)
class Conclusions:
    """What a sweep came to beyond its trials."""

    lessons: Sequence[Lesson]
    """What it learned about each parameter it searched; empty where nobody asked."""
    audit: AuditReport
    decisions: Mapping[int, DecisionRow]
    """What condemned a trial, by its number."""
    forecast: Forecast | None = None
    """What the rest of its budget would bring; None where nobody asked."""


def conclusions(
    sweep: SweepRow,
    trials: Sequence[TrialRow],
    decisions: Sequence[DecisionRow],
    spec: SweepSpec,
    epochs: Mapping[int, Sequence[EpochRow]] | None = None,
) -> Conclusions:
    """
    Args:
        decisions: against the trials.
        epochs: of each trial, by its id; without them there are no lessons.
    """
    curves = {trial: [row.report() for row in rows] for trial, rows in (epochs or {}).items()}
    lessons = [] if epochs is None else learned(trials, curves, spec, sweep.facts["constant_wer"])
    planned = {trial.number: config_of(spec, trial).epochs for trial in trials if trial.hyperparameters}
    by_number = {decision.number: decision for decision in decisions}
    return Conclusions(lessons, audit_report(trials, decisions, planned), by_number)


def sections(sweep: SweepRow, trials: Sequence[TrialRow], found: Conclusions) -> list[tuple[str, list[str]]]:
    """What there is to say of a sweep as a whole: headings and sentences."""
    alarm, test = sweep.facts.get("alarm"), sweep.facts.get("range_test")
    said: list[tuple[str, list[str]]] = []
    if alarm is not None:
        floor = sweep.facts["constant_wer"] - TAKEOFF_MARGIN
        since = sum(t.best_wer is not None and t.best_wer <= floor for t in trials)
        later = [f"Since then {counted(since, 'trial')} took off."] if since else []
        said.append(("Alarm", [alarm["sentence"], alarm["advice"], *later]))
    if confirmed := sweep.facts.get(CONFIRMED):
        said.append((f"Confirmation ({confirmed['sweep']})", list(confirmed["sentences"])))
    if test is not None:
        said.append(("Range test", list(test["sentences"])))
    if found.lessons and any(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials):
        alike: dict[str, list[str]] = {}
        for lesson in found.lessons:
            alike.setdefault(lesson.sentence, []).append(lesson.parameter)
        said.append((f"What it learned ({HOW})", [f"{', '.join(names)}: {each}" for each, names in alike.items()]))
    if found.audit.sentence:
        said.append(("How often the rules were wrong", [found.audit.sentence]))
    if found.forecast is not None and found.forecast.goes_on:
        said.append(("What more would bring", [f"{found.forecast.sentence}."]))
    return said


def result(
    sweep: SweepRow,
    trials: Sequence[TrialRow],
    spec: SweepSpec,
    corpus: CorpusConfig,
    tracking_uri: str,
    ui_command: str,
    found: Conclusions,
) -> dict[str, Any]:
    """The sweep as one JSON object; WER is a fraction, and null where there was none."""
    best, test = best_trial(trials), sweep.facts.get("range_test")
    return {
        "sweep": sweep.name,
        "state": sweep.state.value,
        "tracking_uri": tracking_uri,
        "ui_command": ui_command,
        "seconds": round(sweep.seconds, 1),
        "constant_wer": sweep.facts["constant_wer"],
        "best": best
        and {
            "number": best.number,
            "name": best.name,
            "wer": best.best_wer,
            "hyperparameters": best.hyperparameters,
            "command": command_of(sweep, best, spec, corpus),
        },
        "alarm": sweep.facts.get("alarm"),
        "warm_start": sweep.facts.get("warm_start"),
        "range_test": test and {name: value for name, value in test.items() if name != "looks"},
        "learned": [lesson.as_json() for lesson in found.lessons],
        "audit": found.audit.as_json(),
        "forecast": found.forecast and found.forecast.as_json(),
        "counts": {state.value: sum(t.state is state for t in trials) for state in TrialState},
        "trials": [
            {
                "number": t.number,
                "name": t.name,
                "trial_state": t.state.value,
                "verdict": t.verdict,
                "rule": t.rule,
                "reason": t.reason,
                "counterfactual": (found.decisions[t.number].counterfactual or None)
                if t.number in found.decisions
                else None,
                "audited": is_audit(t, found),
                "best_wer": t.best_wer,
                "epochs": t.epochs,
                "hyperparameters": t.hyperparameters,
                "overrides": t.overrides,
            }
            for t in trials
        ],
    }


def is_audit(trial: TrialRow, found: Conclusions) -> bool:
    """Whether a rule condemned the trial and it ran on all the same."""
    decision = found.decisions.get(trial.number)
    return decision is not None and decision.action == "audited"


def sentence_about(trial: TrialRow) -> str:
    """One trial in a sentence."""
    if trial.reason:
        return trial.reason
    wer = "no epoch yet" if trial.best_wer is None else f"best WER {trial.best_wer:.1%}"
    return f"{trial.state.value.lower()} after {trial.epochs} epochs, {wer}"


SHORT = {"learning_rate": "lr", "warmup_start_factor": "start"}
"""What two long names are called where room is scarce."""


def parameters(trial: TrialRow) -> str:
    """Hyperparameters and overrides, short."""
    values = {SHORT.get(k, k): v for k, v in {**(trial.hyperparameters or {}), **trial.overrides}.items()}
    return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
