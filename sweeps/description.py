"""What stands above a sweep's runs on MLflow's page: the sweep so far, in Markdown. Pure: rows in, text out.

MLflow folds it to its first line, so that line is the answer. Its renderer takes GitHub's Markdown (an `@` makes a
link, a line's end is one) and some HTML: what a person or an exception wrote is escaped to the last character.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from model.diagnosis import TAKEOFF_MARGIN, counted
from sweeps.learned import HOW
from sweeps.records import SweepRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import TrialState
from sweeps.summary import COLLAPSED, Conclusions, best_trial, is_audit, parameters, sections, trial_label
from sweeps.trust import trust
from tracking.links import artifact_source, experiment_url, run_url, view_url
from tracking.views import TITLES, key
from tracking.writer import MAX_TAG_LENGTH

LEADERS = 10
LABEL, VALUES, REASON, SENTENCE = 40, 100, 320, 600
"""Characters at most: of a trial's number and name, its values, why it ended, and any other sentence."""


class Block(NamedTuple):
    """A part of the text, which may be cut short or left out."""

    head: Sequence[str]
    rows: Sequence[str]
    """As many of them, from the first, as there is room for; without any, the head is left out too."""
    rest: str = ""
    """Said where rows were left out; `{n}` is how many."""


def description(
    sweep: SweepRow,
    trials: Sequence[TrialRow],
    spec: SweepSpec,
    commands: Sequence[str],
    found: Conclusions,
    pictures: Sequence[tuple[str, str]] = (),
) -> str:
    """The sweep so far in at most `MAX_TAG_LENGTH` characters; links are relative to the page that shows it.

    Args:
        commands: that train the best trial again, the one for this system's shell first.
        found: without lessons, what is said of learning rates comes from the trials alone.
        pictures: run id and artifact path of each.
    """
    blocks = [
        Block([], [_first_line(sweep, trials)]),
        Block([], _state(sweep, trials)),
        Block([], _views(sweep)),
        _points("Alarm", _of(sweep, trials, found, "Alarm")),
        _points("Confirmation", _of(sweep, trials, found, "Confirmation")),
        _points(
            "Can I trust it?", [each for each in trust(sweep, trials, spec, found) if each != found.audit.sentence]
        ),
        Block(
            ["**Train the best one again**"],
            ["\n".join(map(_fence, commands))] if commands else [],
            f"The command is too long for this page: `sweeps show {sweep.name}` prints it.",
        ),
        Block([], [f'<img src="{artifact_source(run, path)}">' for run, path in pictures]),
        _leaderboard(sweep, trials, found),
        Block(["**Verdicts**"], _verdicts(sweep, trials)),
        _points("Which learning rates took off", [] if found.lessons else _rates(sweep, trials)),
        _points("Range test", _of(sweep, trials, found, "Range test")),
        _points(f"What it learned ({HOW})", _of(sweep, trials, found, "What it learned")),
        _points("How often the rules were wrong", _of(sweep, trials, found, "How often")),
        _ended("Failed", sweep, [t for t in trials if t.state is TrialState.FAILED], "tags.trial_state = 'FAILED'"),
        _ended("Pruned", sweep, [t for t in trials if t.state is TrialState.PRUNED], "tags.trial_state = 'PRUNED'"),
    ]
    return _fitted(blocks, MAX_TAG_LENGTH)


def _fitted(blocks: Sequence[Block], room: int) -> str:
    """The blocks, an empty line between any two, in at most `room` characters."""
    parts: list[str] = []
    for block in blocks:
        left = room - len("\n\n".join([*parts, ""])) - len("\n".join([*block.head, ""]))
        reserve = len(block.rest) + 10  # the number in place of {n}
        shown: list[str] = []
        for at, row in enumerate(block.rows):
            last = at + 1 == len(block.rows)
            if len("\n".join([*shown, row])) + (0 if last else reserve) > left:
                break
            shown.append(row)
        missing = len(block.rows) - len(shown)
        rest = [block.rest.replace("{n}", str(missing))] if missing and block.rest and reserve <= left else []
        if shown or rest:
            # A sentence after a table is apart from it, or becomes one of its rows.
            lines = "\n".join([*block.head, *shown]) if shown else ""
            parts.append("\n\n".join(filter(None, [lines, *rest])))
    return "\n\n".join(parts)


def plain(text: str, length: int = SENTENCE) -> str:
    """Text as it is, in one line, whatever it holds: nothing of it is Markdown or HTML, an address or a person."""
    line = " ".join(text.split())
    line = line if len(line) <= length else f"{line[: length - 1]}…"
    return re.sub(
        r"[\\`*{}\[\]<>|~@&¨$#!\"]|(?<!\w)_|_(?!\w)|:(?!\s|$)|(?<=www)\.", lambda sign: f"&#{ord(sign[0])};", line
    )


def _first_line(sweep: SweepRow, trials: Sequence[TrialRow]) -> str:
    best, floor = best_trial(trials), sweep.facts["constant_wer"]
    alarm = "**Alarm.** " if sweep.facts.get("alarm") else ""
    answer = "**No WER yet**" if best is None else f"**Best: trial {_named(sweep, best)}, dev WER {best.best_wer:.1%}**"
    groups = [
        (sum(_took_off(sweep, trial) for trial in trials), "took off"),
        (sum(trial.verdict in COLLAPSED for trial in trials), "collapsed"),
        (sum(trial.state is TrialState.PRUNED for trial in trials), "pruned"),
    ]
    told = ", ".join(f"{n} {what}" for n, what in groups if n)
    return (
        f"{alarm}{answer} (best constant sentence: {floor:.1%}). {sweep.state.value.capitalize()}, {len(trials)} of "
        f"{counted(sweep.budget['trials'], 'trial')}{f': {told}' if told else ''}."
    )


def _state(sweep: SweepRow, trials: Sequence[TrialRow]) -> list[str]:
    counts = Counter(trial.state for trial in trials)
    states = [f"{counts[state]} {state.value.lower()}" for state in TrialState if counts[state]]
    epochs = sum(trial.epochs for trial in trials)
    return [
        f"Sweep {plain(sweep.name, LABEL)}{f': {plain(sweep.reason)}' if sweep.reason else ''}. "
        f"{', '.join(states).capitalize() or 'No trial yet'}; {counted(epochs, 'epoch')} in all. A trial whose WER is "
        "not clearly below that of the best constant sentence has used nothing of its input."
    ]


def _views(sweep: SweepRow) -> list[str]:
    if sweep.experiment_id is None:
        return []
    links = [_link(title, view_url("", sweep.experiment_id, key(view))) for view, title in TITLES.items()]
    links.append(_link("Table", view_url("", sweep.experiment_id, key("all"), charts=False)))
    return [f"Views: {' · '.join(links)}"]


def _points(heading: str, sentences: Sequence[str]) -> Block:
    return Block([f"**{heading}**", ""], [f"- {plain(sentence)}" for sentence in sentences])


def _of(sweep: SweepRow, trials: Sequence[TrialRow], found: Conclusions, heading: str) -> list[str]:
    said = sections(sweep, trials, found)
    return next((sentences for title, sentences in said if title.startswith(heading)), [])


def _leaderboard(sweep: SweepRow, trials: Sequence[TrialRow], found: Conclusions) -> Block:
    scored = sorted((t for t in trials if t.best_wer is not None), key=lambda t: (t.best_wer, t.number))
    rows = [
        f"| {_named(sweep, t)} | {_verdict(t)}{' (audited)' if is_audit(t, found) else ''} | {t.best_wer:.1%} "
        f"| {t.epochs} | {plain(parameters(t), VALUES)} |"
        for t in scored[:LEADERS]
    ]
    head = ["**Leaderboard**", "", "| trial | verdict | best WER | epochs | values |", "|---|---|---|---|---|"]
    return Block(head, rows, "{n} more stand among the runs.")


def _verdicts(sweep: SweepRow, trials: Sequence[TrialRow]) -> list[str]:
    """Counts, each with a link to its trials; collapsed ones, which have two verdicts, together as well."""
    counts = Counter(trial.verdict for trial in trials if trial.verdict)
    said = [_filtered(sweep, f"{n} {_words(v)}", f"tags.verdict = '{v}'") for v, n in counts.most_common()]
    if counts.keys() >= COLLAPSED:
        both = f"{sum(counts[verdict] for verdict in COLLAPSED)} collapsed or never learned"
        said.append(_filtered(sweep, both, "tags.collapse = 'true'"))
    return [", ".join(said)] if said else []


def _rates(sweep: SweepRow, trials: Sequence[TrialRow]) -> list[str]:
    """Of trials that run, and of those that are over."""
    known = [t for t in trials if t.hyperparameters and t.best_wer is not None]
    did = [_rate(t) for t in known if _took_off(sweep, t)]
    did_not = [_rate(t) for t in known if t.state.terminal and not _took_off(sweep, t)]
    groups = [(did, "took off"), (did_not, "ended without")]
    return [
        f"{counted(len(rates), 'trial')} {what}, with {min(rates):.1e} to {max(rates):.1e}."
        for rates, what in groups
        if rates
    ]


def _ended(heading: str, sweep: SweepRow, trials: Sequence[TrialRow], search: str) -> Block:
    rows = [f"- {_named(sweep, t)} after {counted(t.epochs, 'epoch')}: {plain(t.reason, REASON)}" for t in trials]
    every = _filtered(sweep, f"all {len(trials)}", search)
    return Block([f"**{heading}** ({every})", ""], rows, f"And {{n}} more: {every}.")


def _named(sweep: SweepRow, trial: TrialRow) -> str:
    label = plain(trial_label(trial), LABEL)
    known = sweep.experiment_id is not None and trial.run_id is not None
    return _link(label, run_url("", sweep.experiment_id or "", trial.run_id or "")) if known else label


def _filtered(sweep: SweepRow, text: str, search: str) -> str:
    experiment = sweep.experiment_id
    return (
        text if experiment is None else _link(text, experiment_url("", experiment, search_filter=search, charts=False))
    )


def _link(text: str, address: str) -> str:
    return f"[{text}]({address})"


def _fence(command: str) -> str:
    """As code, which whatever it holds does not end."""
    fence = "`" * max(3, *(1 + len(run) for run in re.findall("`+", command)), 3)
    return f"{fence}\n{command.strip()}\n{fence}"


def _verdict(trial: TrialRow) -> str:
    return _words(trial.verdict or trial.state.value.lower())


def _words(name: str) -> str:
    return name.replace("_", " ")


def _rate(trial: TrialRow) -> float:
    return float({**(trial.hyperparameters or {}), **trial.overrides}["learning_rate"])


def _took_off(sweep: SweepRow, trial: TrialRow) -> bool:
    return trial.best_wer is not None and trial.best_wer <= sweep.facts["constant_wer"] - TAKEOFF_MARGIN
