"""Gantt charts of spans: a lane for each stage, a colour for each job, prefill hatched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernels.errors import UnsupportedError
from pipeline.spans import DECODE, PREFILL, Span, Track

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, which colour-blind readers tell apart too; jobs take them in turn.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
CHORE, MOVING, WAITING = "#999999", "#333333", "#d8d8d8"


@dataclass(frozen=True)
class Box:
    """How a span looks: where it lies in its lane, which is 1 high, from below; and its kind."""

    kind: str
    colour: str
    bottom: float
    height: float
    opacity: float = 1.0
    hatched: bool = False


def box(span: Span) -> Box:
    """Computing is high, and pale for what comes with it (the head); waiting is a thin line."""
    if span.track is Track.WAIT:
        return Box("waiting", WAITING, 0.56, 0.08)
    if span.track is not Track.COMPUTE:
        return Box("send, receive", MOVING, 0.08, 0.14)
    if not span.rows:
        return Box("chore", CHORE, 0.28, 0.64)
    mine = COLOURS[span.job % len(COLOURS)]
    opacity = 1.0 if span.name in (PREFILL, DECODE) else 0.5
    return Box(span.name, mine, 0.28, 0.64, opacity, hatched=span.name == PREFILL)


def draw(
    spans: Sequence[Span],
    labels: Sequence[str],
    start_ns: int,
    end_ns: int,
    title: str,
    axes: Axes | None = None,
) -> Figure:
    """Draw with matplotlib, into `axes` or a figure of its own; `labels` has a name per stage.

    A figure of its own is made by pyplot, so that notebooks can show it, and closed there, so
    that they show it once. Raises `UnsupportedError` without matplotlib.
    """
    try:
        from matplotlib.patches import Patch
    except ImportError as error:
        raise UnsupportedError(
            "matplotlib is not installed: pip install 'lamella[plot]'"
        ) from error
    axes = axes or _new_axes(len(labels))
    top = len(labels) - 1  # the first stage's lane is the highest
    ranges: dict[tuple[int, Box], list[tuple[float, float]]] = defaultdict(list)
    for span in spans:
        place = ((span.start_ns - start_ns) / 1e6, (span.end_ns - span.start_ns) / 1e6)
        ranges[span.stage, box(span)].append(place)
    kinds: dict[str, dict[str, Any]] = {}
    for (stage, look), places in ranges.items():
        style: dict[str, Any] = {
            "facecolor": look.colour,
            "alpha": look.opacity,
            # Of the hatching, or else an outline, so that no box is too thin to be seen.
            "edgecolor": "white" if look.hatched else look.colour,
            "linewidth": 0 if look.hatched else 0.3,
            "hatch": "/////" if look.hatched else None,
        }
        axes.broken_barh(places, (top - stage + look.bottom, look.height), **style)
        kinds.setdefault(look.kind, style)
    axes.set_xlim(0, max(1e-6, (end_ns - start_ns) / 1e6))
    axes.set_ylim(0, len(labels))
    axes.set_yticks([top - stage + 0.5 for stage in range(len(labels))], labels)
    axes.tick_params(axis="y", length=0)
    axes.hlines(range(1, len(labels)), *axes.get_xlim(), color="#eeeeee", linewidth=0.8, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("ms")
    axes.set_title(title, fontsize=9, loc="left", pad=22)
    axes.legend(
        handles=[Patch(**_in_legend(style), label=kind) for kind, style in kinds.items()],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=max(1, len(kinds)),
        fontsize=8,
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.6,
        columnspacing=1.4,
    )
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _in_legend(style: dict[str, Any]) -> dict[str, Any]:
    """Kinds that are told apart by more than colour all have the first one there."""
    known = {colour: COLOURS[0] for colour in COLOURS}
    return {name: known.get(value, value) for name, value in style.items()}


def _new_axes(stages: int) -> Axes:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 1.4 + 0.55 * stages), layout="constrained")
    pyplot.close(figure)
    return axes
