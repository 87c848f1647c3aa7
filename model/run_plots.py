"""Pictures of a run: each curve against what knowing nothing scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from model.diagnosis import takeoff_epoch
from model.floors import Floors
from model.page import Picture
from model.plots import INK, ONE, SOFT, TWO, draw, mark
from model.symptoms import USED_T, measured
from model.types import EpochReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def run_pictures(reports: Sequence[EpochReport], floors: Floors) -> list[Picture]:
    """Loss, WER and the gaps by epoch; none for a run of less than two epochs."""
    if len(reports) < 2:
        return []
    pictures = [_loss(reports, floors), _wer(reports, floors)]
    if _points(reports, "probe/swap_t")[0]:
        pictures.append(_gaps(reports))
    return pictures


def _points(reports: Sequence[EpochReport], key: str) -> tuple[list[int], list[float]]:
    """Epochs and finite values of a metric."""
    points = [(report.epoch, value) for report in reports if (value := measured(report, key)) == value]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _curves(ax: Axes, reports: Sequence[EpochReport], keys: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for key, colour in zip(keys, (ONE, TWO), strict=False):
        epochs, values = _points(reports, key)
        if epochs:
            ax.plot(epochs, values, color=colour, marker="o", markersize=2.5, linewidth=1.2, label=key)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if ax.get_legend_handles_labels()[1]:  # none where nothing was finite
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0, handlelength=1.2, labelcolor=INK)


def _level(ax: Axes, value: float, name: str) -> None:
    """A level to hold the curves against, named at its right end."""
    ax.axhline(value, color=SOFT, linewidth=1, linestyle="--")
    ax.annotate(name, (1, value), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
                va="bottom", color=SOFT)  # fmt: skip


def _loss(reports: Sequence[EpochReport], floors: Floors) -> Picture:
    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        _curves(ax, reports, ("train/loss", "dev/loss"))
        for value, name in ((floors.dev_constant_loss, "best constant posterior"), (floors.uniform_loss, "uniform")):
            if value > 0:
                _level(ax, value, name)
        if all(value > 0 for key in ("train/loss", "dev/loss") for value in _points(reports, key)[1]):
            ax.set_yscale("log")
            mark(ax.yaxis)
        ax.set_ylabel("nats per gloss")

    return draw(
        "Loss",
        "At the lower line it is that of the best constant output on dev, which knows nothing of the input; at the "
        "upper one that of an untrained network.",
        paint,
    )


def _wer(reports: Sequence[EpochReport], floors: Floors) -> Picture:
    takeoff = takeoff_epoch([report.wer for report in reports], floors.constant_wer)

    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        _curves(ax, reports, ("dev/wer", "train/wer"))
        _level(ax, floors.constant_wer, "best constant sentence")
        if takeoff is not None:
            ax.axvline(takeoff, color=SOFT, linewidth=1, linestyle=":")
        ax.set_ylim(0, min(1.5, max([1.05, *(1.05 * value for value in _points(reports, "dev/wer")[1])])))
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")

    when = "It has not taken off." if takeoff is None else f"It took off at epoch {takeoff}."
    return draw("WER", f"{when} Before that WER is no evidence: slow runs stand at 100 % as dead ones do.", paint)


def _gaps(reports: Sequence[EpochReport]) -> Picture:
    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        _curves(ax, reports, ("probe/swap_t", "probe/permuted_t"))
        ax.set_yscale("symlog", linthresh=USED_T)
        _level(ax, USED_T, f"{USED_T:g}")
        mark(ax.yaxis)
        ax.set_ylabel("paired t")

    return draw(
        "Use of the input",
        "t of the swap gap (another sequence's features) and of the permuted-time gap (own frames in random order). "
        "Above the line the output depends on the input; WER follows some epochs later.",
        paint,
    )
