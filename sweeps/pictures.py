"""Pictures of a sweep, for a page (SVG in the page's colours) and for a notebook (figures of matplotlib)."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from model import plots
from model.diagnosis import TAKEOFF_MARGIN, counted
from model.page import Picture
from sweeps.gathered import Gathered, values
from sweeps.importance import importance
from sweeps.learned import FEWEST_TRIALS
from sweeps.records import TrialRow
from sweeps.spec import Choices, Parameter
from sweeps.states import TrialState
from sweeps.summary import SHORT, trial_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind: TypeAlias = Literal["wer", "spread", "loss", "learning_rate", "parallel", "importance"]


@dataclass(frozen=True)
class Colours:
    ink: str
    soft: str
    band: str
    one: str
    two: str


OF_THE_PAGE = Colours(plots.INK, plots.SOFT, plots.BAND, plots.ONE, plots.TWO)
ON_WHITE = Colours("#1c2024", "#666e76", "#e4e9ef", "#2563b0", "#c25e00")

DOTS = 1_000
"""Epochs that are drawn as dots as well, so that a trial of a single one is seen."""

MOST_LEVEL_NAMES = 6
"""More names below parallel coordinates would run into each other: they are turned."""

Paint: TypeAlias = "Callable[[Axes, Gathered, Colours], None]"


@dataclass(frozen=True)
class Drawing:
    title: str
    caption: str
    """What it shows, and what to look for."""
    paint: Paint


def svg(kind: Kind, of: Gathered) -> Picture:
    """For a page, in its colours. Curves are as exact as a screen shows them."""
    drawing = DRAWINGS[kind]

    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        drawing.paint(ax, of, OF_THE_PAGE)

    picture = plots.draw(drawing.title, drawing.caption, paint)
    return Picture(picture.title, _rounded(picture.svg), picture.caption)


def figure(kind: Kind, of: Gathered) -> Figure:
    """For a notebook, which shows it as it is, or for `savefig`. It is none of pyplot's: nothing has to be closed."""
    import matplotlib
    from matplotlib import figure as figures

    class Shown(figures.Figure):
        def _repr_png_(self) -> bytes:
            """Asked for by notebooks, which otherwise know only the figures of pyplot."""
            out = io.BytesIO()
            self.savefig(out, format="png")
            return out.getvalue()

    drawing = DRAWINGS[kind]
    with matplotlib.rc_context(
        {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "text.parse_math": False}
    ):
        shown = Shown(figsize=(8, 4.5), dpi=110, layout="constrained")
        ax = shown.subplots()
        drawing.paint(ax, of, ON_WHITE)
        ax.set_title(f"{of.sweep.name}: {drawing.title}", loc="left", pad=24)
    return shown


def png(kind: Kind, of: Gathered) -> bytes:
    """As a file, on white."""
    out = io.BytesIO()
    figure(kind, of).savefig(out, format="png")
    return out.getvalue()


def alternative(kind: Kind, of: Gathered) -> str:
    """What a picture shows, in words, for those who do not see it."""
    best = of.best
    reached = "no WER yet" if best is None else f"the lowest WER is {best.best_wer:.1%}, of trial {trial_label(best)}"
    what = {
        "wer": f"WER by epoch of {counted(len(of.curves), 'trial')}; {reached}.",
        "loss": f"Dev loss by epoch of {counted(len(of.curves), 'trial')}.",
        "spread": f"Log-prob spread by epoch of {counted(len(of.curves), 'trial')}.",
        "learning_rate": f"Best WER by learning rate: {_outcome_counts(of)}.",
        "parallel": f"The values of each trial and its best WER as lines; {reached}.",
        "importance": "; ".join(f"{name} {share:.0%}" for name, share in importance(of.trials, of.spec).items())
        or f"Less than {FEWEST_TRIALS} trials are over: nothing is drawn.",
    }
    return what[kind]


# by epoch


def _curves(ax: Axes, of: Gathered, metric: str, colours: Colours) -> None:
    """Every trial a line: those stopped early dimmed, the best one on top, named."""
    from matplotlib.ticker import MaxNLocator

    best = of.best
    number = None if best is None else best.number
    stopped = [t.number for t in of.trials if t.state in (TrialState.PRUNED, TrialState.FAILED)]
    others = [t.number for t in of.trials if t.number not in {*stopped, number}]
    groups: list[tuple[str, list[int], dict[str, Any]]] = [
        ("stopped early", stopped, {"color": colours.soft, "alpha": 0.4, "linewidth": 0.8}),
        ("not stopped", others, {"color": colours.one, "alpha": 0.6, "linewidth": 1}),
    ]
    if best is not None:
        groups.append((f"best: trial {best.number}", [best.number], {"color": colours.two, "linewidth": 1.8}))
    for label, numbers, style in groups:
        # One line for all of a group, and dots only where they are few: a page of a thousand trials is to stay small.
        epochs, points = _joined(of.curve(each, metric) for each in numbers if each in of.curves)
        if epochs:
            fine = {**style, "linewidth": style["linewidth"] * _fineness(len(numbers))}
            ax.plot(epochs, points, label=label, marker="." if len(epochs) < DOTS else "", markersize=2.5, **fine)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(ax, colours)


def _joined(curves: Any) -> tuple[list[float], list[float]]:
    """Curves as one, with gaps between them."""
    epochs: list[float] = []
    points: list[float] = []
    for xs, ys in curves:
        epochs += [*xs, math.nan]
        points += [*ys, math.nan]
    return epochs, points


def _wer(ax: Axes, of: Gathered, colours: Colours) -> None:
    _curves(ax, of, "dev/wer", colours)
    _level(ax, of.sweep.facts["constant_wer"], "best constant sentence", colours)
    ax.set_ylim(0, 1.1)  # above 110 % one is as wrong as the other
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    ax.set_ylabel("dev WER")
    _if_empty(ax, of.curves, "no epoch yet", colours)


def _spread(ax: Axes, of: Gathered, colours: Colours) -> None:
    _curves(ax, of, "spread/time", colours)
    ax.set_ylabel("spread over time (nats)")
    _if_empty(ax, ax.lines, "no epoch with this metric", colours)


def _loss(ax: Axes, of: Gathered, colours: Colours) -> None:
    _curves(ax, of, "dev/loss", colours)
    floor, highest = of.sweep.floors.dev_constant_loss, of.sweep.floors.uniform_loss
    if math.isfinite(floor):
        _level(ax, floor, "best constant posterior", colours)
    losses = [loss for number in of.curves for loss in of.curve(number, "dev/loss")[1]]
    most = min(2 * highest, max(losses, default=highest)) if math.isfinite(highest) else max(losses, default=1.0)
    ax.set_ylim(0, 1.1 * most)  # a diverged trial would hide the others
    ax.set_ylabel("dev loss (nats per gloss)")
    _if_empty(ax, of.curves, "no epoch yet", colours)


# by value


def _outcome(of: Gathered, trial: TrialRow) -> str:
    if trial.number in of.takeoffs:
        return "took off"
    if trial.verdict == "diverged":
        return "diverged"
    if trial.verdict == "too_slow":
        return "stopped before"
    return "did not take off" if trial.state.terminal else "not yet"


def _outcome_counts(of: Gathered) -> str:
    outcomes = [_outcome(of, trial) for trial in of.trials if trial.best_wer is not None]
    return ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes)) or "no trial yet"


def _learning_rate(ax: Axes, of: Gathered, colours: Colours) -> None:
    looks: Mapping[str, dict[str, Any]] = {
        "took off": {"color": colours.one, "marker": "o"},
        "did not take off": {"color": colours.two, "marker": "x"},
        "diverged": {"color": colours.two, "marker": "^"},
        "stopped before": {"color": colours.soft, "marker": "s", "alpha": 0.7},
        "not yet": {"color": colours.soft, "marker": "."},
    }
    scored = [t for t in of.trials if t.best_wer is not None and values(t)]
    outcomes = {t.number: _outcome(of, t) for t in scored}
    rates = [values(t)["learning_rate"] for t in scored]
    space = of.spec.space.learning_rate
    left, right = min([space.low, *rates]), max([space.high, *rates])
    if left > 0:
        ax.set_xscale("log")
        ax.set_xlim(left / 1.15, max(right, 1.5 * left) * 1.15)
        plots.mark(ax.xaxis)
    bounds = of.sweep.facts.get("learning_rate_bounds")
    if bounds is not None:
        ax.axvspan(bounds["low"], bounds["high"], color=colours.band, linewidth=0, zorder=0)
        who = "the range test" if bounds.get("by") == "range_test" else "the alarm"
        middle = math.sqrt(bounds["low"] * bounds["high"])
        ax.annotate(f"searched, by {who}", (middle, 0), (0, 4), xycoords=("data", "axes fraction"), ha="center",
                    textcoords="offset points", color=colours.soft)  # fmt: skip
    for outcome, look in looks.items():
        points = [(values(t)["learning_rate"], min(t.best_wer or 0.0, 1.1)) for t in scored
                  if outcomes[t.number] == outcome]  # fmt: skip
        if points:
            xs, ys = zip(*points, strict=True)
            ax.plot(xs, ys, linestyle="none", markersize=5 * _fineness(len(scored)), label=outcome, **look)
    _level(ax, of.sweep.facts["constant_wer"], "best constant sentence", colours)
    ax.set_ylim(0, 1.15)
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    ax.set_xlabel("learning rate")
    ax.set_ylabel("best dev WER")
    _legend(ax, colours)
    _if_empty(ax, scored, "no trial yet", colours)


def _parallel(ax: Axes, of: Gathered, colours: Colours) -> None:
    scored = sorted(
        (t for t in of.trials if t.best_wer is not None and t.hyperparameters), key=lambda t: -(t.best_wer or 0.0)
    )
    given = [values(t) for t in scored]
    searched = of.spec.space.searched()
    columns = [_placed([each.get(name) for each in given], parameter) for name, parameter in searched.items()]
    columns.append(_placed([t.best_wer for t in scored], None))
    for x, (_, labels) in enumerate(columns if scored else []):
        ax.axvline(x, color=colours.soft, linewidth=0.6)
        for y, text in labels.items():
            where, offset = ("bottom", 3) if y == 1 else ("top", -3) if y == 0 else ("center", 0)
            ax.annotate(text, (x, y), (0, offset), textcoords="offset points", ha="center", va=where,
                        color=colours.soft, annotation_clip=False)  # fmt: skip
    third = len(scored) - math.ceil(len(scored) / 3)  # the best ones come last, and lie on top
    groups: tuple[tuple[str, range, dict[str, Any]], ...] = (
        ("others", range(third), {"color": colours.soft, "alpha": 0.35, "linewidth": 0.8}),
        ("best third", range(third, len(scored) - 1), {"color": colours.one, "alpha": 0.75, "linewidth": 1.1}),
        ("best", range(max(len(scored) - 1, 0), len(scored)), {"color": colours.two, "linewidth": 1.8}),
    )
    for label, rows, style in groups:
        lines = ([(x, column[row]) for x, (column, _) in enumerate(columns) if column[row] is not None] for row in rows)
        xs, ys = _joined(tuple(zip(*line, strict=True)) for line in lines)
        if xs:
            ax.plot(xs, ys, label=label, **{**style, "linewidth": style["linewidth"] * _fineness(len(rows))})
    ax.set_xticks(range(len(columns)), [*(SHORT.get(name, name) for name in searched), "best WER"])
    if len(columns) > MOST_LEVEL_NAMES:
        ax.tick_params(axis="x", labelrotation=25)
    ax.tick_params(axis="x", length=0, pad=12)
    ax.set_yticks([])
    ax.set_ylim(-0.04, 1.14)
    for side in ax.spines.values():
        side.set_visible(False)
    _legend(ax, colours)
    _if_empty(ax, scored, "no trial yet", colours)


def _placed(column: Sequence[Any], parameter: Parameter | None) -> tuple[list[float | None], dict[float, str]]:
    """Heights (0 to 1) of one value of each trial, None where it has none, and what stands beside some heights. Without
    a parameter it is their WERs.
    """
    there = [value for value in column if value is not None]
    if isinstance(parameter, Choices):
        choices = list(dict.fromkeys([*parameter.choices, *there]))  # a named trial may have had another one
        return (
            [None if value is None else choices.index(value) / (len(choices) - 1) for value in column],
            {n / (len(choices) - 1): str(choice) for n, choice in enumerate(choices)},
        )
    if not there:
        return [None for _ in column], {}
    low, high = min(there), max(there)
    log = parameter is not None and parameter.log and low > 0

    def height(value: float) -> float:
        if low == high:
            return 0.5
        return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)

    written = "{:.0%}" if parameter is None else "{:.2g}"
    heights = [None if value is None else height(value) for value in column]
    return heights, {0.0: written.format(low), 1.0: written.format(high)} if low < high else {0.5: written.format(low)}


def _importance(ax: Axes, of: Gathered, colours: Colours) -> None:
    shares = importance(of.trials, of.spec)
    names = sorted(shares, key=lambda name: shares[name])
    said = {lesson.parameter: lesson.says for lesson in of.conclusions.lessons}
    notes = {"effect": "", "no_clear_effect": ", no clear effect", "too_few": ", too few trials to claim it"}
    bars = ax.barh(names, [shares[name] for name in names], height=0.55)
    for bar, name in zip(bars, names, strict=True):
        says = said.get(name, "too_few")
        bar.set_color(colours.one if says == "effect" else colours.soft)
        text = f"{shares[name]:.0%}{notes[says]}"
        ax.annotate(text, (shares[name], name), (4, 0), textcoords="offset points", va="center", color=colours.ink)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    ax.set_xlabel("of the differences in WER")
    _if_empty(ax, shares, f"too few trials are over: it takes {FEWEST_TRIALS}", colours)


# what they have in common


def _fineness(number: int) -> float:
    """How thin so many things are drawn, so that they do not run into one: 1 up to 50, 0.3 from 500 on."""
    return max(0.3, min(1.0, math.sqrt(50 / max(number, 1))))


def _level(ax: Axes, value: float, name: str, colours: Colours) -> None:
    ax.axhline(value, color=colours.soft, linewidth=1, linestyle="--")
    ax.annotate(name, (1, value), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
                va="bottom", color=colours.soft)  # fmt: skip


def _legend(ax: Axes, colours: Colours) -> None:
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0, handlelength=1.2,
                  columnspacing=1.2, labelcolor=colours.ink)  # fmt: skip


def _if_empty(ax: Axes, what: object, why: str, colours: Colours) -> None:
    if not what:
        ax.annotate(why, (0.5, 0.5), xycoords="axes fraction", ha="center", color=colours.soft)


def _rounded(picture: str) -> str:
    """With coordinates to a tenth of a point: half the bytes, and no eye sees it."""
    return re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), picture)


DRAWINGS: Mapping[Kind, Drawing] = {
    "wer": Drawing(
        "WER",
        "Every trial by epoch. Until a trial takes off WER is no evidence: slow ones stand at 100 % as dead ones do.",
        _wer,
    ),
    "spread": Drawing(
        "Log-prob spread",
        "How much each class's log-probability moves over the time of a sentence. It stays near 0 where the output "
        "does not depend on the input.",
        _spread,
    ),
    "loss": Drawing(
        "Dev loss",
        "CTC loss on dev. It first falls to what a constant output reaches, which learns nothing of the input; a trial "
        "that goes below has begun to use it, often epochs before its WER moves.",
        _loss,
    ),
    "learning_rate": Drawing(
        "Which learning rates took off",
        f"The best WER of each trial. It took off once its WER was {100 * TAKEOFF_MARGIN:.0f} points below that of the "
        "best constant sentence. The band is what is searched.",
        _learning_rate,
    ),
    "parallel": Drawing(
        "Configurations",
        "Each line is a trial: where its values lie in the searched ranges, and the WER they came to.",
        _parallel,
    ),
    "importance": Drawing(
        "What mattered",
        "How much of the differences in WER (ranks) the learning rate explains; for the others, of what the learning "
        "rate leaves. What chance would explain is taken off.",
        _importance,
    ),
}
