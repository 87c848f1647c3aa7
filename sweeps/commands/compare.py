"""`sweeps compare`: sweeps side by side."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.text import Text

from model.metrics import wer_interval
from model.types import BUILT_IN
from sweeps.commands.options import DatabaseOption, HomeOption, JsonOption, ServerOption, reached
from sweeps.commands.tables import Column, console_for, percent, print_table
from sweeps.errors import SweepError
from sweeps.gathered import every_trial
from sweeps.interface import Sweeps
from sweeps.records import SweepRow, TrialRow
from sweeps.service import SweepService
from sweeps.spec import corpus_of, in_words, spec_of
from sweeps.states import TrialState
from sweeps.summary import best_trial, parameters, trial_label
from sweeps.warm_start import FACT, Taken

NOT_OF_THE_SPEC = ("name", "found")
"""What differs between any two sweeps, and what is compared by its hash."""


def compare(
    names: Annotated[list[str], typer.Argument(metavar="SWEEP SWEEP...")],
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sweeps side by side: corpus, trials, epochs, best WER, hours, verdicts, and where their spaces and specs differ.

    Says first whether their WERs compare at all.
    """
    if len(names) < 2:
        raise SweepError(f"compare {names[0]}: name two sweeps at least")
    with reached(home, database, server) as sweeps:
        sides = [side(sweeps, name) for name in names]
    specs = [each.pop("spec") for each in sides]
    reasons, differing, searched = why_not(sides), differences(specs), spaces(sides)
    if as_json:
        found = {"sweeps": sides, "not_comparable": reasons, "differences": differing}
        print(json.dumps(found, allow_nan=False))
        return
    console = console_for(sys.stdout)
    for why in reasons:
        console.print(Text(f"WERs DO NOT COMPARE: {why}", style="bold red"), soft_wrap=not console.is_terminal)
    columns = [Column(""), *(Column(each["sweep"]) for each in sides)]
    rows = [[label, *cells] for label, cells in table(sides) if any(cells)]
    print_table(columns, rows, console)
    console.print()
    if not differing:
        console.print("The specs are the same.")
        return
    alike = [name for name, across in searched.items() if len(set(across)) == 1]
    otherwise = {f"space.{name}": across for name, across in searched.items() if name not in alike}
    if otherwise:
        said = f"All of them search {', '.join(alike)} alike." if alike else "They search nothing alike."
        console.print(Text(said), soft_wrap=not console.is_terminal)
    rest = {path: list(map(_value, across)) for path, across in differing.items() if not path.startswith("space.")}
    print_table(
        [Column("spec"), *columns[1:]],
        [[path, *across] for path, across in {**otherwise, **rest}.items()],
        console,
    )


def side(sweeps: Sweeps, name: str) -> dict[str, Any]:
    """One sweep, as plain values."""
    status, trials = sweeps.sweep(name), every_trial(sweeps, name)
    sweep, best = status.sweep, best_trial(trials)
    spec = spec_of(sweep)
    own = spec.trainer.model_dump()
    return {
        "sweep": sweep.name,
        "state": sweep.state.value,
        "corpus": corpus_of(sweep).path.name,
        "corpus_hash": sweep.facts.get("corpus_hash"),
        "vocabulary_hash": sweep.facts.get("vocabulary_hash"),
        "dev_sequences": sweep.facts.get("dev_sequences"),
        "trainer": sweep.facts.get("trainer", BUILT_IN),
        "constant_wer": sweep.facts["constant_wer"],
        "trials": len(trials),
        "budget": sweep.budget["trials"],
        "epochs": status.epochs,
        "hours": sweep.seconds / 3600,
        "best": best
        and {
            "number": best.number,
            "name": best.name,
            "wer": best.best_wer,
            "interval": interval(sweeps, sweep, best),
            "parameters": parameters(best),
            "epochs_until": epochs_until(best, trials),
        },
        "warm_start": sweep.facts.get(FACT, []),
        "space": {name: in_words(parameter) for name, parameter in spec.space.searched().items()},
        "fixed": {name: value for name, value in own.items() if name not in spec.space.searched()}
        | {name: p.at(0) for name, p in spec.space.parameters().items() if p.count == 1},
        "states": dict(Counter(trial.state.value for trial in trials)),
        "verdicts": dict(Counter(trial.verdict for trial in trials if trial.verdict)),
        "spec": {**sweep.spec, "budget": sweep.budget},
        "best_label": best and trial_label(best),
    }


def interval(sweeps: Sweeps, sweep: SweepRow, best: TrialRow) -> list[float] | None:
    """Of the best WER, 95 %, over dev sentences; None where its sentences were not scored. Only a database has them."""
    if not isinstance(sweeps, SweepService):
        return None
    scored = [row for row in sweeps.store.scores(sweep.id) if row.trial_id == best.id and row.split == "dev"]
    return list(wer_interval(scored[0].errors, scored[0].words)) if scored and scored[0].sentences else None


def epochs_until(best: TrialRow, trials: Sequence[TrialRow]) -> int:
    """Epochs of the trials that were over when the best one was, its own included."""
    end = best.finished_at
    over = [t for t in trials if end is None or (t.finished_at is not None and t.finished_at <= end)]
    return sum(trial.epochs for trial in over)


def spaces(sides: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Each parameter that one of them searches, to what each tries of it."""
    names = dict.fromkeys(name for each in sides for name in each["space"])
    return {name: [each["space"].get(name) or f"{each['fixed'][name]}, fixed" for each in sides] for name in names}


def why_not(sides: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why WERs of these sweeps do not compare, a sentence a reason; empty where they do."""
    reasons = {
        "corpus_hash": "the corpora differ, in their sentences, features or normalisation",
        "vocabulary_hash": "the vocabularies differ",
        "constant_wer": "the best constant sentence scores differently, so the dev sentences differ",
        "trainer": "different trainers measured them",
    }
    said = []
    for key, reason in reasons.items():
        across = [each[key] for each in sides]
        if any(value != across[0] for value in across):
            shown = ", ".join(f"{each['sweep']} {_short(value)}" for each, value in zip(sides, across, strict=True))
            said.append(f"{reason} ({shown})")
    return said


def differences(specs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Where specs differ: dotted path to the value in each, null where it has none."""
    flat = [flattened({k: v for k, v in spec.items() if k not in NOT_OF_THE_SPEC}) for spec in specs]
    paths = dict.fromkeys(path for spec in flat for path in spec)
    across = {path: [spec.get(path) for spec in flat] for path in paths}
    return {path: values for path, values in across.items() if any(value != values[0] for value in values)}


def flattened(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted paths to the values of nested mappings."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        here = f"{path}.{key}" if path else str(key)
        found |= flattened(value, here) if isinstance(value, Mapping) and value else {here: value}
    return found


def table(sides: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Label and cells of each row."""
    rows = [
        ("state", [each["state"] for each in sides]),
        ("corpus", [each["corpus"] for each in sides]),
        ("corpus hash", [_short(each["corpus_hash"]) for each in sides]),
        ("trainer", [each["trainer"] for each in sides]),
        ("knowing nothing", [percent(each["constant_wer"]) for each in sides]),
        ("best WER", [percent(each["best"] and each["best"]["wer"]) for each in sides]),
        ("95 % interval", [_between(each["best"] and each["best"]["interval"]) for each in sides]),
        ("of trial", [each["best_label"] or "" for each in sides]),
        ("with", [each["best"]["parameters"] if each["best"] else "" for each in sides]),
        ("trials", [f"{each['trials']}/{each['budget']}" for each in sides]),
        ("epochs", [str(each["epochs"]) for each in sides]),
        ("epochs to the best", [str(each["best"]["epochs_until"]) if each["best"] else "" for each in sides]),
        ("began from", [", ".join(str(Taken(**taken)) for taken in each["warm_start"]) for each in sides]),
        ("hours", [f"{each['hours']:.2f}" for each in sides]),
    ]
    for key, known in (("states", [s.value for s in TrialState]), ("verdicts", None)):
        labels = known or sorted({label for each in sides for label in each[key]})
        rows += [(label, [str(each[key].get(label, "")) for each in sides]) for label in labels]
    return rows


def _between(edges: Sequence[float] | None) -> str:
    return "" if edges is None else f"{edges[0]:.1%} to {edges[1]:.1%}"


def _short(value: Any) -> str:
    """A hash as people tell two of them apart; anything else as it is."""
    if isinstance(value, float):
        return f"{value:.2%}"
    text = "unknown" if value is None else str(value)
    return text[:12] if len(text) == 64 else text


def _value(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
