"""A sweep as one HTML file, to be read, printed and kept: it needs nothing else, neither scripts nor addresses."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from model.diagnosis import counted
from model.types import BUILT_IN
from sweeps import pictures, warm_start
from sweeps.budget import Spending, shares
from sweeps.confirmation import CONFIRMED
from sweeps.gathered import Gathered, values
from sweeps.learned import HOW
from sweeps.records import DecisionRow, TrialRow, shown_host
from sweeps.spec import corpus_of, in_words
from sweeps.states import TrialState
from sweeps.summary import COLLAPSED, command_of, is_audit, powershell_line, sentence_about, trial_label, words_of
from sweeps.trust import shown
from sweeps.trust import trust as trust_in
from tracking.links import without_credentials

ARTIFACT = "report.html"
"""Its name in MLflow: the same each time, so that a later one takes the place of an earlier one."""

LEADERS = 20
"""Trials that the leaderboard shows."""

Rows = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Summary:
    """Sentences, for somebody who was not there."""

    asked: Sequence[str]
    found: Sequence[str]
    trust: Sequence[str]
    """What speaks for and against it."""


def report(of: Gathered, at: float | None = None) -> str:
    """The page. Every text in it is escaped.

    Args:
        at: when it was made, UNIX seconds; now.
    """
    best = of.best
    ranked = sorted((t for t in of.trials if t.best_wer is not None), key=lambda t: (t.best_wer, t.number))
    return _template().render(
        of=of,
        made=_utc(time.time() if at is None else at),
        summary=summary(of),
        best=best,
        best_values=[(name, shown(value)) for name, value in values(best).items()] if best else [],
        commands=[(shell, re.split(" (?=--)", line)) for shell, line in commands(of, best)] if best else [],
        leaders=[(t, is_audit(t, of.conclusions)) for t in ranked[:LEADERS]],
        not_shown=len(of.trials) - len(ranked[:LEADERS]),
        drawn={kind: _figure(kind, of) for kind in pictures.DRAWINGS},
        decisions=[(d, measured(d)) for d in of.decisions],
        failed=[t for t in of.trials if t.state is TrialState.FAILED],
        environment=environment(of),
        reproduce=reproduce(of),
        spec=yaml.safe_dump(_asked(of), sort_keys=False, allow_unicode=True),
        how=HOW,
        label=trial_label,
        shown=shown,
        values=values,
        sentence=sentence_about,
    )


# the words


def summary(of: Gathered) -> Summary:
    """What was asked, what was found, and whether one can trust it."""
    return Summary(_what_was_asked(of), _what_was_found(of), _whether_to_trust(of))


def question(of: Gathered) -> str:
    """What a sweep asks."""
    return (
        f"Which configuration of the {of.sweep.facts.get('trainer', BUILT_IN)} trainer has the lowest word error rate "
        f"(WER) on the dev sentences of {corpus_of(of.sweep).path.name}?"
    )


def _what_was_asked(of: Gathered) -> list[str]:
    spec = of.spec
    searched = [f"{name} {in_words(each)}" for name, each in spec.space.searched().items()]
    limits = [str(share) for share in shares(of.sweep.budget, Spending(0, 0.0, 0.0))]
    said = [
        question(of),
        f"{counted(of.sweep.budget['trials'], 'trial')} of up to {counted(spec.trainer.epochs, 'epoch')} each"
        + (f", at most {' and '.join(limits)}" if limits else "")
        + f"; searched by {spec.sampler.name}: {'; '.join(searched) or 'nothing'}.",
    ]
    if spec.first_trials:
        said.append(f"Trained first: {', '.join(spec.first_trials)}.")
    if began_from := warm_start.in_words(of.sweep):
        said.append(f"{began_from[0].upper()}{began_from[1:]}.")
    return said


def _what_was_found(of: Gathered) -> list[str]:
    best, floor = of.best, of.sweep.facts["constant_wer"]
    counts = Counter(trial.state for trial in of.trials)
    epochs = sum(trial.epochs for trial in of.trials)
    confirmed = of.sweep.facts.get(CONFIRMED)
    states = ", ".join(f"{counts[state]} {state.value.lower()}" for state in TrialState if counts[state])
    said = []
    if best is None or best.best_wer is None:
        said.append("No trial has a WER yet.")
    else:
        said.append(
            f"Trial {trial_label(best)} has the lowest WER, {best.best_wer:.1%}, at epoch {best.best_epoch}; the best "
            f"constant sentence, which ignores the input, has {floor:.1%}."
        )
        named = [t for t in of.trials if t.name in of.spec.first_trials and t.best_wer is not None and t is not best]
        for trial in named:
            points = 100 * ((trial.best_wer or 0.0) - best.best_wer)
            said.append(f"That is {points:.1f} points below {trial.name} ({trial.best_wer:.1%}).")
    said.append(
        f"Of {counted(len(of.trials), 'trial')} ({states or 'none yet'}) {len(of.takeoffs)} took off; "
        f"{counted(epochs, 'epoch')} and {of.sweep.seconds / 3600:.1f} hours in all."
    )
    if confirmed is not None:
        said += [f"Confirmed by the sweep {confirmed['sweep']}:", *confirmed["sentences"]]
    return said


def _whether_to_trust(of: Gathered) -> list[str]:
    sweep, said = of.sweep, list[str]()
    if not sweep.state.terminal:
        said.append(f"The sweep is not over ({sweep.state.value.lower()}): this is how it stood.")
    alarm = sweep.facts.get("alarm")
    if alarm is not None:
        said.append(f"It alarmed: {alarm['sentence']}")
    return said + trust(of)


def trust(of: Gathered) -> list[str]:
    """See `sweeps.trust`."""
    return trust_in(of.sweep, of.trials, of.spec, of.conclusions)


# the facts


def commands(of: Gathered, best: TrialRow) -> list[tuple[str, str]]:
    """Shell and the line for it that trains the best configuration again; none where a trainer of one's own did."""
    line = command_of(of.sweep, best, of.spec, corpus_of(of.sweep))
    if line is None:
        return []
    _, *words = words_of(line)
    python = ["python", *words]  # this page travels: the place of the interpreter does not
    return [("bash, zsh", shlex.join(python)), ("PowerShell", powershell_line(python))]


def environment(of: Gathered) -> list[Mapping[str, str]]:
    """Where its trials were trained, as workers said when they claimed them: a row for each that is different."""
    rows: dict[tuple[str, str, str], set[int]] = {}
    for event in of.events:
        if event.kind == "claimed" and "versions" in event.data and event.trial_number is not None:
            versions = ", ".join(f"{name} {version}" for name, version in event.data["versions"].items())
            where = (shown_host(str(event.data.get("host", ""))), str(event.data.get("device", "")), versions)
            rows.setdefault(where, set()).add(event.trial_number)
    return [
        {"host": host, "device": device, "versions": versions, "trials": str(len(numbers))}
        for (host, device, versions), numbers in rows.items()
    ]


def reproduce(of: Gathered) -> Rows:
    """What it takes to do it again, and to tell whether it is the same."""
    sweep, facts = of.sweep, of.sweep.facts
    known = {
        "corpus": str(corpus_of(sweep).path),
        "corpus hash": facts.get("corpus_hash"),
        "vocabulary hash": facts.get("vocabulary_hash"),
        "trainer": facts.get("trainer", BUILT_IN),
        "commit of the working directory": facts.get("git_commit"),
        "seed": of.spec.seed,
        "digest of the spec": sweep.digest,
        "created": _utc(sweep.created_at),
        "finished": _utc(sweep.finished_at) if sweep.finished_at else None,
        "MLflow": without_credentials(sweep.tracking) if sweep.tracking else None,
        "MLflow run of the best trial": of.best.run_id if of.best else None,
    }
    return [(name, str(value)) for name, value in known.items() if value not in (None, "")]


def _asked(of: Gathered) -> dict[str, Any]:
    """The spec as one may run it again: as it was asked for, with the budget of today."""
    asked = {key: value for key, value in of.sweep.spec.items() if key != "found"}
    return {**asked, "budget": of.sweep.budget}


def measured(decision: DecisionRow) -> Rows:
    """What was measured, and what it was held against."""
    rows = [
        ("measured", ", ".join(f"{name} {value:.4g}" for name, value in decision.numbers.items())),
        ("held against", ", ".join(f"{name} {value:.4g}" for name, value in decision.thresholds.items())),
        ("compared with trials", ", ".join(map(str, decision.siblings))),
        ("would have kept it", decision.counterfactual),
    ]
    return [(name, text) for name, text in rows if text]


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _figure(kind: pictures.Kind, of: Gathered) -> Mapping[str, Any]:
    picture = pictures.svg(kind, of)
    said = Markup('<svg role="img" aria-label="{}"').format(pictures.alternative(kind, of))
    return {"title": picture.title, "caption": picture.caption, "svg": Markup(picture.svg.replace("<svg", said, 1))}


def _template() -> jinja2.Template:
    text = (files("sweeps") / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda wer: "" if wer is None else f"{wer:.1%}"
    environment.tests["collapsed"] = lambda verdict: verdict in COLLAPSED
    return environment.from_string(text)
