"""The picture of a range test: loss against learning rate, both edges, and what is proposed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.files import written_aside
from model.plots import mark
from model.range_test import RangeTest
from model.symptoms import USED_T

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, BAND, TRAIN, DEV = "#1c2024", "#666e76", "#dcebdf", "#2563b0", "#c25e00"


def write_picture(test: RangeTest, file: Path) -> None:
    """Draw it as PNG, in place of what `file` was.

    Raises:
        OSError: the folder cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}
    ):
        figure = Figure(figsize=(7.2, 5.2), dpi=110, layout="constrained")
        loss, gap = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        _loss(loss, test)
        _gap(gap, test)
        figure.suptitle("Learning-rate range test", x=0.01, ha="left", fontsize=11, color=INK)
        with written_aside(file) as out:
            figure.savefig(out, format="png", metadata={"Software": None})


def _curve(ax: Axes, test: RangeTest, key: str, **style: Any) -> None:
    points = [(look.rate, value) for look in test.looks if (value := getattr(look, key)) == value]
    if points:
        rates, values = zip(*points, strict=True)
        ax.plot(rates, values, marker="o", markersize=2.5, linewidth=1.2, **style)


def _loss(ax: Axes, test: RangeTest) -> None:
    _proposal(ax, test, named=True)
    _curve(ax, test, "train_loss", color=TRAIN, label="train, smoothed")
    _curve(ax, test, "dev_loss", color=DEV, label="dev, a fixed sample")
    for value, name, side in ((test.constant_loss, "F0: best constant output", 0), (test.uniform_loss, "uniform", 1)):
        if value > 0:
            ax.axhline(value, color=SOFT, linewidth=1, linestyle="--")
            ax.annotate(name, (side, value), (2 - 4 * side, 2), xycoords=("axes fraction", "data"),
                        textcoords="offset points", ha="right" if side else "left", color=SOFT)  # fmt: skip
    if all(value > 0 for look in test.looks for value in (look.train_loss, look.dev_loss) if value == value):
        ax.set_yscale("log")
        mark(ax.yaxis)
    ax.set_ylabel("nats per gloss")
    ax.legend(loc="lower left", frameon=False, labelcolor=INK)


def _gap(ax: Axes, test: RangeTest) -> None:
    _proposal(ax, test, named=False)
    _curve(ax, test, "swap_t", color=TRAIN)
    ax.axhline(USED_T, color=SOFT, linewidth=1, linestyle="--")
    ax.annotate(f"{USED_T:g}: the input is used", (0, USED_T), (2, 2), xycoords=("axes fraction", "data"),
                textcoords="offset points", color=SOFT)  # fmt: skip
    ax.set_xscale("log")
    ax.set_ylabel("t of the swap gap")
    ax.set_xlabel("learning rate")
    ax.set_xlim(*_ends(test))
    mark(ax.xaxis)


def _ends(test: RangeTest) -> tuple[float, float]:
    """The rates of the axis: those of the ramp, and the lower edge, which may lie below them."""
    first, last = test.looks[0].rate, test.looks[-1].rate
    if test.edges.low is not None and test.edges.low < first:
        first = max(0.7 * test.edges.low, 0.1 * first)
    return first, max(last, 2 * first)


def _proposal(ax: Axes, test: RangeTest, *, named: bool) -> None:
    """The proposed rates as a band, the edges and the rate to begin with as lines."""
    first, last = _ends(test)
    if test.low is not None or test.high is not None:
        ax.axvspan(max(test.low or first, first), min(test.high or last, last), color=BAND, linewidth=0)
    lines: Sequence[tuple[float | None, str, str]] = (
        (test.edges.low, "not learning", ":"),
        (test.edges.high, "diverging", ":"),
        (test.suggested, "first trial", "-"),
    )
    for rate, name, style in lines:
        if rate is not None and first <= rate <= last:
            ax.axvline(rate, color=INK, linewidth=1, linestyle=style)
            if named:
                ax.annotate(f"{name}\n{rate:.1e}", (rate, 1), (0, 3), xycoords=("data", "axes fraction"),
                            textcoords="offset points", ha="center", va="bottom", color=INK, fontsize=8)  # fmt: skip
