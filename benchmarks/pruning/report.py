"""The replays as a table, a picture and a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from sklearn.metrics import roc_auc_score
from tables import Recorded

from model.diagnosis import run_findings
from sweeps.alarm import alarm

DOCS = Path(__file__).parents[2] / "docs" / "explanation"
PAGE = DOCS / "pruning.md"
PICTURE = DOCS / "pruning.png"
BEGIN, END = "<!-- replay.py writes from here -->", "<!-- to here -->"

SIGNALS: dict[str, tuple[str, float]] = {
    "WER": ("dev/wer", -1),
    "dev loss": ("dev/loss", -1),
    "train loss": ("train/loss", -1),
    "time spread": ("spread/time", 1),
    "swap gap": ("probe/swap_gap", 1),
    "swap gap's t": ("probe/swap_t", 1),
    "LR-time": ("lr_time", 1),
}
"""Name, key, and whether high (1) or low (-1) speaks for a run."""

AUC_EPOCHS = (1, 2, 3, 5, 8)

NEAR_BEST = 0.05
"""A run that ends within this WER of its table's best could have been the one to keep."""

OUTCOMES: dict[str, Callable[[Recorded, float], bool]] = {
    "will learn": lambda run, best: run.learned,
    "will end within 5 points of the best": lambda run, best: run.best <= best + NEAR_BEST,
}


def auc_rows(tables: dict[str, list[Recorded]]) -> list[dict[str, Any]]:
    """How well each signal, at each epoch, tells the runs that will from those that will not: area under the ROC
    curve in each table (0.5 is chance), and the mean over the tables where both kinds are.
    """
    rows = []
    for outcome, truth in OUTCOMES.items():
        for name, (key, sign) in SIGNALS.items():
            for epoch in AUC_EPOCHS:
                found = {}
                for table, runs in tables.items():
                    best = min(run.best for run in runs)
                    pairs = []
                    for run in runs:
                        report = run.reports[epoch - 1]
                        value = sign * (report.lr_time if key == "lr_time" else report.value(key))
                        # What is not finite (a diverged run's loss) speaks against a run as much as can be.
                        pairs.append((truth(run, best), value if math.isfinite(value) else -1e9))
                    if len({label for label, _ in pairs}) == 2:
                        found[table] = float(roc_auc_score([label for label, _ in pairs], [v for _, v in pairs]))
                if found:
                    mean = sum(found.values()) / len(found)
                    rows.append({"outcome": outcome, "signal": name, "epoch": epoch, "auc": mean, "tables": found})
    return rows


def percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


def between(row: dict[str, Any], name: str, digits: int = 1, scale: float = 100) -> str:
    """A value with its interval."""
    if row[name] is None:
        return "none given"
    value, low, high = (scale * row[name + end] for end in ("", "_low", "_high"))
    most = math.inf if name == "regret_points" else 100.0
    return f"{value:.{digits}f} ({max(0.0, low):.{digits}f} to {min(most, high):.{digits}f})"


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line a policy and setting."""
    lines = [
        "| policy | settings | trials from | epochs, % of no pruning | regret, WER points | verdict errors, % | "
        "learners stopped in the plateau, % | winners killed, % | dead stopped within a third, % | epochs to verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        settings = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in row["settings"].items())
        dead = "" if row["dead_stopped_rate"] is None else between(row, "dead_stopped_rate", 0)
        cells = [
            row["policy"],
            settings,
            row["sampler"],
            between(row, "epochs_fraction"),
            between(row, "regret_points", 2, 1),
            between(row, "verdict_error_rate"),
            between(row, "learners_stopped_in_plateau_rate"),
            between(row, "winners_killed_rate"),
            dead,
            "" if row["epochs_to_verdict"] is None else f"{row['epochs_to_verdict']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (epochs, regret) that no other is at least as good as on both: a step line from few epochs to many."""
    kept: list[tuple[float, float]] = []
    for epochs, regret in sorted(points):
        if not kept or regret < kept[-1][1]:
            kept.append((epochs, regret))
    return kept


COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#aa3377", "#bbbbbb", "#8c564b", "#e377c2", "#17becf", "#7f7f7f")
"""Paul Tol's bright scheme (kept apart by colour-blind readers), and more for many families; ours is its red."""


def as_picture(rows: Sequence[dict[str, Any]], file: Path = PICTURE) -> None:
    """Regret against epochs: each setting a dot, each family's best trade-offs a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["sampler"] == "random" and row["workers"] == 1]
    figure, axes = plt.subplots(figsize=(8.5, 5.2), dpi=100)
    families = list(dict.fromkeys(row["policy"] for row in rows))
    special = {
        "ours": ("#ee6677", "D", 9),
        "oracle": ("black", "*", 11),
        "none": ("black", "s", 6),
        "side by side": ("0.35", "^", 6),
    }
    others = [f for f in families if f not in special]
    for family in families:
        points = [(100 * r["epochs_fraction"], r["regret_points"]) for r in rows if r["policy"] == family]
        colour, marker, size = special.get(family) or (COLOURS[others.index(family) % len(COLOURS)], "o", 4)
        axes.scatter(*zip(*points, strict=True), s=size**2, c=colour, marker=marker, zorder=3 + (family in special))
        line = frontier(points)
        axes.plot(*zip(*line, strict=True), color=colour, lw=1.4, label=family, marker=marker, ms=size, zorder=2)
    axes.axhline(1, color="0.6", lw=0.8, ls=":")
    axes.axvline(35, color="0.6", lw=0.8, ls=":")
    axes.set_yscale("symlog", linthresh=1, linscale=1.5)
    axes.set_ylim(bottom=-0.05)
    ticks = [0, 0.25, 0.5, 1, 2, 5, 10, 20]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(0, 102)
    axes.set_xlabel("epochs spent, % of no pruning")
    axes.set_ylabel("regret: WER points lost to pruning")
    axes.set_title("Replays of 24-trial sweeps over recorded runs: below and left is better", fontsize=10)
    axes.legend(fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def lane_rows(lanes: dict[str, list[Recorded]]) -> list[str]:
    """Which broken-data lanes were named, by what and when."""
    lines = ["| corpus | lane | learning rate | named | by | at epoch |", "|---|---|---|---|---|---|"]
    for table, runs in lanes.items():
        for run in runs:
            code, epoch = named(run)
            by = "the check of the corpus" if epoch == 0 else "the run's findings"
            lines.append(
                f"| {table} | {run.lane} | {run.config.learning_rate:g} | {f'`{code}`' if code else '**no**'} | "
                f"{by if code else ''} | {'' if epoch is None else epoch} |"
            )
    return lines


def named(run: Recorded) -> tuple[str, int | None]:
    """The finding that names a lane rightly, and after which epoch (0: by the check); ("", None) if none did."""
    if run.says in run.check:
        return run.says, 0
    for n in range(1, run.epochs + 1):
        codes = {f.code for f in run_findings(run.reports[:n], run.config, run.floors, dev_sequences=run.dev_sequences)}
        if run.says in codes:
            return run.says, n
    return "", None


def alarms_on(lanes: dict[str, list[Recorded]]) -> list[str]:
    """Whole sweeps of shuffled labels: what the alarm says of them."""
    lines = []
    for table, runs in lanes.items():
        shuffled = [run for run in runs if run.says == "input_not_used"]
        if not shuffled:
            continue
        histories = [replace(run.whole, number=number) for number, run in enumerate(shuffled)]
        # A sweep of three times as many trials alarms once a third of them has not taken off.
        raised = alarm(histories, shuffled[0].floors, 3 * len(histories), shuffled[0].dev_sequences)
        lines.append(f"| {table} | {len(histories)} | {raised.cause if raised else 'no alarm'} |")
    return ["| corpus | trials with shuffled labels | cause named by the alarm |", "|---|---|---|", *lines]


def about_tables(tables: dict[str, list[Recorded]]) -> list[str]:
    lines = [
        "| corpus | runs | epochs | learned | never learned | not decided | median takeoff | best WER | constant WER |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in tables.items():
        learned = [run for run in runs if run.learned]
        undecided = [run for run in runs if not run.decided]
        takeoff = median(run.histories[-1].takeoff or 0 for run in learned)
        lines.append(
            f"| {name} | {len(runs)} | {runs[0].epochs} | {len(learned)} | {len(runs) - len(learned) - len(undecided)} "
            f"| {len(undecided)} | {takeoff:g} | {min(r.best for r in runs):.1%} | {runs[0].floors.constant_wer:.1%} |"
        )
    return lines


def auc_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for outcome in OUTCOMES:
        lines += [
            "",
            f"**{outcome}**",
            "",
            "| signal | " + " | ".join(f"epoch {n}" for n in AUC_EPOCHS) + " |",
            "|---|" + "---|" * len(AUC_EPOCHS),
        ]
        for name in SIGNALS:
            found = {r["epoch"]: r for r in rows if r["outcome"] == outcome and r["signal"] == name}
            cells = [f"{found[n]['auc']:.2f}" if n in found else "" for n in AUC_EPOCHS]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def docs_page(
    rows: Sequence[dict[str, Any]],
    tables: dict[str, list[Recorded]],
    lanes: dict[str, list[Recorded]],
    auc: Sequence[dict[str, Any]],
) -> None:
    """Write the generated part of the page, between its two marks."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [
        "## The runs",
        "",
        *about_tables(tables),
        "",
        "## Every policy, every setting",
        "",
        f"{min(row['replays'] for row in rows)} replays a policy, of {len(rows)} policies and settings. `ours` without "
        "settings is the rule as it ships.",
        "",
        as_markdown(rows),
        "",
        "## How well each signal separates",
        "",
        "Area under the ROC curve, mean over the corpora; 0.5 is chance.",
        *auc_table(auc),
        "",
        "## Broken data",
        "",
        *lane_rows(lanes),
        "",
        *alarms_on(lanes),
        "",
    ]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{after}", encoding="utf-8", newline="\n")
