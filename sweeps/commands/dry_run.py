"""What `sweeps run --dry-run` prints."""

from __future__ import annotations

from typing import Any, TextIO

from model.types import BUILT_IN
from sweeps import preparing
from sweeps.settings import Home


def plan_report(prepared: preparing.Prepared, home: Home) -> dict[str, Any]:
    spec, corpus = prepared.spec, prepared.corpus
    plan = preparing.plan(prepared)
    return {
        "sweep": spec.name,
        "home": str(home.root),
        "corpus": {
            "folder": str(corpus.folder),
            "hash": corpus.hash,
            "sentences": {s.name: len(s) for s in (corpus.train, corpus.dev, corpus.test) if s is not None},
            "width": corpus.width,
            "modalities": {m.name: m.width for m in corpus.modalities},
            "classes": len(corpus.vocabulary),
            "vocabulary_hash": corpus.vocabulary.hash,
            "notes": list(prepared.notes),
            "splits": corpus.facts["splits"],
        },
        "constant_wer": prepared.floors.constant_wer,
        "constant_sentence": prepared.floors.constant_sentence,
        "space": {name: parameter.model_dump(mode="json") for name, parameter in spec.space.parameters().items()},
        "first_trials": {p.name: {**p.hyperparameters, **p.overrides} for p in spec.planned()},
        "budget": spec.budget.model_dump(),
        "workers": spec.workers,
        "trainer": prepared.facts["trainer"],
        "parameters": plan.parameters,
        "seconds_per_epoch": plan.seconds_per_epoch,
        "epochs_at_most": plan.epochs,
        "hours_at_most": plan.hours,
        "device_hours_at_most": plan.device_hours,
        "money_at_most": plan.money,
        "disk_bytes": plan.disk_bytes,
    }


def duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes" if hours > 0.03 else "under 2 minutes"


def _choice(name: str, parameter: dict[str, Any]) -> str:
    if "choices" in parameter:
        said = f"{name} {'|'.join(map(str, parameter['choices']))}"
    else:
        said = f"{name} {parameter['low']:g}..{parameter['high']:g}{' log' if parameter['log'] else ''}"
    conditions = [f"{other}={'|'.join(map(str, allowed))}" for other, allowed in parameter.get("when", {}).items()]
    return f"{said} (with {', '.join(conditions)})" if conditions else said


def _cost(report: dict[str, Any]) -> list[str]:
    said = [duration(report["hours_at_most"])]
    if report["workers"] > 1 or report["money_at_most"] is not None:
        said.append(f"{report['device_hours_at_most']:.1f} device hours")
    if report["money_at_most"] is not None:
        said.append(f"{report['money_at_most']:,.2f} {report['budget']['currency'] or 'in money'}")
    return said


def print_plan(report: dict[str, Any], out: TextIO) -> None:
    corpus = report["corpus"]
    sentences = ", ".join(f"{n} {split}" for split, n in corpus["sentences"].items())
    modalities = ", ".join(f"{name} {width}" for name, width in corpus["modalities"].items())
    space = [_choice(name, parameter) for name, parameter in report["space"].items()]
    size, epoch = f"{report['parameters'] / 1e6:.2f}", f"about {report['seconds_per_epoch']:.1f} s an epoch"
    lines = [
        f"sweep      {report['sweep']}, everything under {report['home']}",
        f"corpus     {corpus['folder']}: {sentences}",
        f"features   {corpus['width']} wide ({modalities}), {corpus['classes']} classes",
        f"floor      {report['constant_wer']:.1%} WER by the best constant sentence, {report['constant_sentence']!r}",
        f"space      {'; '.join(space)}",
        f"trials     {report['budget']['trials']} on {report['workers']} workers, of these named: "
        + (", ".join(report["first_trials"]) or "none"),
        f"student    {size} M parameters, {epoch} (measured: a few untrained steps, and dev once)"
        if report["trainer"] == BUILT_IN
        else f"trainer    {report['trainer']}, {size} M numbers in its state, {epoch} (measured: a few steps; dev is "
        "not among them)",
        f"cost       at most {report['epochs_at_most']} epochs, {', '.join(_cost(report))}, if nothing is pruned; "
        f"{report['disk_bytes'] / 1e6:.0f} MB of disk",
        "dry run: nothing was trained",
    ]
    for line in lines:
        print(line, file=out)
