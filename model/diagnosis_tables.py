"""The facts of a diagnosis as rows of text, for a page or a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from model.page import Table

SHOWN = 10
"""Glosses named at most."""


def tables(facts: Mapping[str, Any]) -> list[Table]:
    """Of `model.diagnose.Diagnosis.facts` and the keys that the command adds to them."""
    found = [
        Table("Weights", _weights(facts)),
        Table(f"Output on {facts['split']}, {facts['sequences']} sequences", _output(facts)),
        Table(
            "Examples",
            [(e["id"], e["reference"], e["hypothesis"] or "(empty)") for e in facts["examples"]],
            ("sequence", "reference", "hypothesis"),
        ),
    ]
    if facts["wers"] and facts["milestones"]:
        rows = [tuple(line.split(": ", 1)) for line in facts["milestones"] if line.startswith("WER")]
        note = " ".join(line for line in facts["milestones"] if not line.startswith("WER"))
        found.append(Table("Milestones of the run", rows, note=note))
    return found


def _weights(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("checkpoint", f"{facts['checkpoint']} ({facts['chosen']})"),
        ("sha256", facts["sha256"]),
        ("run", facts["run"]),
        ("epoch, step", f"{facts['epoch']}, {facts['step']:,}"),
        ("split, mode", f"{facts['split']}, {facts['mode']}"),
        ("corpus", f"{facts['corpus']} ({facts['corpus_hash'][:12]})"),
        ("config", " ".join(f"{k}={v}" for k, v in facts["config"].items()) or "all defaults"),
    ]


def _output(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    m, floors, glosses = facts["metrics"], facts["floors"], facts["predicted_glosses"]
    words = ", ".join(f"{word} {count}" for word, count in facts["words"].items())
    logged = "none; give the one of your own log with --log_loss"
    if isfinite(facts["logged_loss"]):
        logged = f"{facts['logged_loss']:.3f}; best constant posterior on train {floors['constant_loss']:.3f}"
    rows = [
        (
            "WER",
            f"{m['dev/wer']:.1%} (S {m['dev/sub']:.1%} D {m['dev/del']:.1%} I {m['dev/ins']:.1%}); best constant "
            f"sentence {floors['constant_wer']:.1%}",
        ),
        (
            "loss",
            f"{m['dev/loss']:.3f} nats per gloss; best constant posterior {floors['dev_constant_loss']:.3f}, uniform "
            f"{floors['uniform_loss']:.3f}",
        ),
        ("logged train loss", logged),
        (
            "log-probabilities",
            f"[{m['spread/min']:.4f}, {m['spread/max']:.4f}], range {m['spread/range']:.4f}, over time "
            f"{m['spread/time']:.4f}; uniform over {facts['classes']} classes {facts['uniform_log_prob']:.4f}",
        ),
        (
            "best classes",
            f"{len(glosses)} of {facts['classes']}: {', '.join(glosses[:SHOWN])}"
            + (" ..." if len(glosses) > SHOWN else ""),
        ),
        (
            "words",
            f"{m['decode/glosses']} distinct, {m['decode/length']:.1%} of the references' number"
            + (f": {words}" if words else ""),
        ),
        ("hypotheses", f"{m['decode/hypotheses']} distinct; {m['decode/blank']:.1%} of the frames blank"),
        ("swap gap", _gap(m["probe/swap_gap"], m["probe/swap_t"], m["probe/sequences"])),
        ("permuted-time gap", _gap(m["probe/permuted_gap"], m["probe/permuted_t"], facts["permuted_sequences"])),
    ]
    if isfinite(facts["logged_dev_loss"]):
        rows.insert(3, ("logged dev loss, WER", f"{facts['logged_dev_loss']:.3f}, {facts['logged_dev_wer']:.1%}"))
    if isfinite(facts["padding_leak"]):
        rows.append(("padding", f"changes a log-probability by {facts['padding_leak']:.1e} at most"))
    return rows


def _gap(gap: float, t: float, sequences: float) -> str:
    if not isfinite(gap):
        return "not measured"
    of = f"t = {t:.1f} over {sequences:.0f} sequences" if isfinite(t) else f"{sequences:.0f} sequences, too few for a t"
    return f"{gap:+.4f} nats per gloss, {of}"
