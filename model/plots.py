"""Numbers in, pictures out: SVG to be put into a page, the same bytes for the same numbers.

Colours are the page's variables, so that a picture is light or dark with it. Text stays text. Nothing here touches
pyplot, which keeps figures in a global list.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from model.corpus.check import Curves, Report
from model.corpus.facts import MEAN_LIMIT, STD_LIMITS, STRIDES, CorpusFacts
from model.floors import Floors
from model.page import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, SOFT, LINE, BAND, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
ONE, TWO, THREE = "#060606", "#070707", "#080808"
"""Stand-ins, which become variables of the page: matplotlib takes only colours."""
_VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    LINE: "line",
    BAND: "band",
    PAPER: "paper",
    ONE: "one",
    TWO: "two",
    THREE: "three",
}
SERIES = (ONE, TWO, THREE)

_WIDTH, _HEIGHT = 5.2, 2.9  # inches: as wide as a phone at 72 points, so that its text is as large there as the page's
_BINS = 160  # of dimensions in one picture


def draw(title: str, caption: str, paint: Callable[[Sequence[Axes]], None], rows: int = 1, columns: int = 1) -> Picture:
    """A picture of axes in rows and columns, which `paint` fills."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": title,  # ids are unique in the page, and the same each time
            "font.family": "sans-serif",
            "font.size": 9,
            "text.color": INK,
            "axes.edgecolor": LINE,
            "axes.facecolor": "none",
            "axes.labelcolor": SOFT,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": SOFT,
            "ytick.color": SOFT,
            "legend.frameon": False,
            "figure.facecolor": "none",
            "text.parse_math": False,
        }
    ):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        paint([axis for row in axes for axis in row])
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Picture(title, _for_page(out.getvalue()), caption)


def _for_page(svg: str) -> str:
    """The svg element alone, as wide as its place, in the colours and the font of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # the same in every picture, and an id is one of a page
    svg = re.sub(r"""font: ([\d.]+px) [^;"]*""", r"font-size: \1", svg)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def corpus_pictures(report: Report) -> list[Picture]:
    """Of what `check_corpus` found; none where there is nothing to be shown."""
    facts, curves = report.facts, report.curves
    if facts is None or curves is None:
        return []
    pictures = []
    if (curves.needed > 0).any():
        pictures += [_fit(facts, curves), _lengths(curves)]
    if len(curves.glosses) > 1:
        pictures.append(_frequencies(curves))
    if any(len(split.recordings.parts) > 1 for split in facts.splits.values()):
        pictures.append(_detection(facts))
    if curves.entering and not curves.constant.all():
        pictures.append(_normalisation(facts, curves))
    if facts.floors is not None and np.isfinite(_losses(facts.floors)).all():
        pictures.append(_floors(facts.floors))
    return pictures


def _fit(facts: CorpusFacts, curves: Curves) -> Picture:
    ratios = curves.frames[curves.needed > 0] / curves.needed[curves.needed > 0]

    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        low, high = min(ratios.min(), facts.stride) * 0.8, max(ratios.max(), facts.stride) * 1.25
        ax.hist(ratios, np.geomspace(low, high, 40).tolist(), color=ONE)
        ax.set_xscale("log", base=2)
        ticks = [tick for tick in (*STRIDES, 64, 128, 256) if low <= tick <= high]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.axvline(facts.stride, color=TWO)
        # Below the stride nothing fits; the name stands on the side with more room.
        right = np.log(facts.stride / low) < np.log(high / facts.stride)
        ax.annotate(
            f"stride {facts.stride}",
            (facts.stride, 1),
            (4 if right else -4, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            ha="left" if right else "right",
            color=TWO,
        )
        ax.set_xlabel("input frames per output frame needed")
        _count_sentences(ax)

    return draw(
        "Room for an alignment",
        "T / (glosses + adjacent repeats) of each train sentence. Left of the line no alignment fits.",
        paint,
    )


def _lengths(curves: Curves) -> Picture:
    def paint(axes: Sequence[Axes]) -> None:
        for ax, values, name in zip(
            axes,
            (curves.frames, curves.needed[curves.needed > 0]),
            ("input frames", "glosses and repeats"),
            strict=True,
        ):
            width = max(1, -(-int(np.ptp(values) + 1) // 40))  # whole numbers in every bin
            ax.hist(values, (np.arange(values.min(), values.max() + 2 * width, width) - 0.5).tolist(), color=ONE)
            ax.set_xlabel(name)
            _count_sentences(ax)
        axes[1].set_ylabel("")

    return draw(
        "Lengths", "Of the train sentences: input frames, and output frames that the target needs.", paint, 1, 2
    )


def _frequencies(curves: Curves) -> Picture:
    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        ax.plot(np.arange(1, len(curves.glosses) + 1), curves.glosses, ".", color=ONE, markersize=3)
        ax.set(xscale="log", yscale="log", xlabel="rank of the gloss", ylabel="times in train")
        mark(ax.xaxis)
        mark(ax.yaxis)

    return draw("Glosses", "How often train says each gloss. Those said once can hardly be learned.", paint)


def _detection(facts: CorpusFacts) -> Picture:
    parts = list(dict.fromkeys(part for split in facts.splits.values() for part in split.recordings.parts))
    shifts = np.linspace(0.2, -0.2, len(facts.splits)) if len(facts.splits) > 1 else [0.0]

    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        for (name, split), colour, shift in zip(facts.splits.items(), SERIES, shifts, strict=False):
            shares = [
                (shares.seen, at + shift)
                for at, part in enumerate(reversed(parts))
                if part in split.recordings.parts
                for shares in split.recordings.parts[part].signers.values()
            ]
            if shares:
                ax.plot(*zip(*shares, strict=True), "o", color=colour, alpha=0.7, markersize=5, label=name)
        ax.set(xlim=(-0.03, 1.03), xlabel="share of frames in which it is detected", ylim=(-0.6, len(parts) - 0.4))
        ax.set_yticks(range(len(parts)), parts[::-1])
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        ax.grid(axis="x", color=LINE, linewidth=0.6)
        ax.set_axisbelow(True)
        _legend(ax)

    return draw(
        "Detection", "A point is a signer. Hands rest: 40 to 50 % of the frames is usual for one of them.", paint
    )


def _normalisation(facts: CorpusFacts, curves: Curves) -> Picture:
    blocks, start = [], 0  # of each modality, all of them as wide: where its bins stand, and their dimensions
    for number, width in enumerate(facts.modalities.values()):
        varying = start + np.flatnonzero(~curves.constant[start : start + width])
        bins = np.array_split(varying, min(len(varying), _BINS // len(facts.modalities) + 1)) if len(varying) else []
        blocks.append(([number + float(columns.mean() - start + 0.5) / width for columns in bins], bins))
        start += width

    def paint(axes: Sequence[Axes]) -> None:
        for ax, which, limits, name in zip(
            axes, (0, 1), ((-MEAN_LIMIT, MEAN_LIMIT), STD_LIMITS), ("mean", "deviation"), strict=True
        ):
            ax.axhspan(*limits, color=BAND)
            for (split, both), colour in zip(curves.entering.items(), SERIES, strict=False):
                for number, (centres, bins) in enumerate(blocks):
                    low, middle, high = ([f(both[which][b]) for b in bins] for f in (np.min, np.median, np.max))
                    ax.fill_between(centres, low, high, color=colour, alpha=0.35, linewidth=0)
                    ax.plot(centres, middle, color=colour, linewidth=1, label=None if number else split)
            for edge in range(1, len(blocks)):
                ax.axvline(edge, color=LINE, linewidth=0.8)
            ax.set_ylabel(name)
            ax.set_xlim(0, len(blocks))
        axes[0].set_yscale("symlog", linthresh=1)
        axes[1].set_yscale("log")
        axes[0].set_xticks([])
        _legend(axes[0])
        axes[1].set_xticks([number + 0.5 for number in range(len(blocks))], [*facts.modalities])
        axes[1].tick_params(axis="x", length=0)
        for ax in axes:
            mark(ax.yaxis)

    return draw(
        "Normalisation",
        "Mean and deviation of each dimension as it enters the model. Within the band all is well. Dev is normalised "
        "by train's numbers, and an unseen signer lies beside them.",
        paint,
        rows=2,
    )


def mark(axis: Axis) -> None:
    """Ticks at round numbers on an axis with a log or symlog scale, once all is drawn.

    Powers of ten where there are enough of them in sight, else 2 and 5 times these as well, else even steps.
    """
    from matplotlib.ticker import MaxNLocator, NullLocator

    low, high = sorted(map(float, axis.get_view_interval()))
    powers = [10.0**k for k in range(-9 if axis.get_scale() == "log" else 0, 10)]
    for steps in ((1,), (1, 2, 5)):
        sizes = [step * power for power in powers for step in steps]
        ticks = [tick for tick in (*(-size for size in sizes), 0.0, *sizes) if low <= tick <= high]
        if len(ticks) > 2:
            break
    else:
        ticks = [
            float(tick) for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high
        ]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def _losses(floors: Floors) -> list[float]:
    return [floors.uniform_loss, floors.dev_constant_loss, floors.constant_loss]


def _floors(floors: Floors) -> Picture:
    names = ["untrained:\nuniform, dev", "best constant,\ndev", "best constant,\ntrain (F0)"]

    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        bars = ax.barh(range(3), _losses(floors)[::-1], color=[ONE, ONE, SOFT], height=0.6)
        ax.bar_label(bars, fmt="{:.2f}", padding=3, color=INK)
        ax.set_yticks(range(3), names[::-1])
        ax.set_xlabel("CTC loss in nats per gloss")
        ax.margins(x=0.12)

    return draw(
        "What knowing nothing scores",
        "A loss near the best constant posterior's knows nothing of its input. In words: "
        f"{floors.constant_sentence!r}, said always, has a WER of {floors.constant_wer:.1%} on dev.",
        paint,
    )


def _count_sentences(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_ylabel("train sentences")
    ax.yaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _legend(ax: Axes) -> None:
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0, handlelength=1.2, labelcolor=INK)
