"""What a sweep came to, as plain values and as text. Pure: rows in, words out."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.corpus.data import CorpusConfig
from model.types import BUILT_IN, TrainingConfig
from sweeps.records import SweepRow, TrialRow
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
    words = [program("python"), "-m", "model", "train", "--data_dir", str(corpus.path)]
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
    words += ["--output_dir", str(output)]
    return shell_line(words)


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


def result(
    sweep: SweepRow,
    trials: Sequence[TrialRow],
    spec: SweepSpec,
    corpus: CorpusConfig,
    tracking_uri: str,
    ui_command: str,
) -> dict[str, Any]:
    """The sweep as one JSON object; WER is a fraction, and null where there was none."""
    best = best_trial(trials)
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
        "counts": {state.value: sum(t.state is state for t in trials) for state in TrialState},
        "trials": [
            {
                "number": t.number,
                "name": t.name,
                "trial_state": t.state.value,
                "verdict": t.verdict,
                "reason": t.reason,
                "best_wer": t.best_wer,
                "epochs": t.epochs,
                "hyperparameters": t.hyperparameters,
                "overrides": t.overrides,
            }
            for t in trials
        ],
    }


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


DESCRIPTION_LENGTH = 8000
"""What an MLflow tag holds."""


def description(sweep: SweepRow, trials: Sequence[TrialRow], command: str | None) -> str:
    """The sweep so far in Markdown, for the head of its MLflow experiment: as many trials as there is room for."""
    counts = Counter(t.state.value for t in trials)
    best = best_trial(trials)
    lines = [
        f"**Sweep `{sweep.name}`**: {sweep.state.value.lower()}, "
        + (", ".join(f"{n} {state.lower()}" for state, n in sorted(counts.items())) or "no trial yet")
        + f" of {sweep.budget['trials']} trials. The best constant sentence scores "
        f"{sweep.facts['constant_wer']:.1%} WER: a run that is not clearly below has used nothing of its input.",
        "",
    ]
    if best is not None and command:
        lines += [f"Best: trial {trial_label(best)}, dev WER {best.best_wer:.1%}.", "", f"```\n{command}\n```", ""]
    lines += [
        "| trial | state | verdict | best WER | epochs | hyperparameters | why |",
        "|---|---|---|---|---|---|---|",
    ]
    room = DESCRIPTION_LENGTH - len("\n".join(lines)) - 100
    ranked = sorted(trials, key=lambda t: (t.best_wer is None, t.best_wer or 0.0, t.number))
    for shown, t in enumerate(ranked):
        wer = "" if t.best_wer is None else f"{t.best_wer:.1%}"
        cells = [trial_label(t), t.state.value, t.verdict or "", wer, str(t.epochs), parameters(t), t.reason]
        row = f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"
        room -= len(row) + 1
        if shown == 30 or room < 0:
            lines += ["", f"The {len(ranked) - shown} other trials stand among the runs below."]
            break
        lines.append(row)
    return "\n".join(lines)
