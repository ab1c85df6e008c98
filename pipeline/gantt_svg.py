"""A small Gantt chart as SVG, for notebooks that show a timeline without being asked to plot."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from html import escape

from pipeline.gantt import box
from pipeline.spans import Span

MOST_BOXES = 1500
"""A notebook keeps them all, and more could not be told apart."""

WIDTH, LANE, LEFT, TOP, BOTTOM = 900, 30, 120, 24, 22  # pixels


def svg(
    spans: Sequence[Span], labels: Sequence[str], start_ns: int, end_ns: int, title: str
) -> str:
    """The chart as one `<svg>` element: of the last spans if there are too many.

    Spans are in the order of their starts; `labels` has a name per stage.
    """
    shown = spans[-MOST_BOXES:]
    if len(shown) < len(spans):
        first = max(start_ns, shown[0].start_ns)
        title = f"{title}. Here the last {(end_ns - first) / 1e6:.1f} ms"
        start_ns = first
    height = TOP + LANE * len(labels) + BOTTOM
    return "".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="11" '
            'style="max-width:100%;background:white">',
            f'<text x="4" y="15">{escape(title)}</text>',
            *(
                f'<text x="4" y="{TOP + LANE * (stage + 0.62):g}">{escape(label)}</text>'
                for stage, label in enumerate(labels)
            ),
            *_boxes(shown, start_ns, end_ns),
            *_axis(height - BOTTOM, (end_ns - start_ns) / 1e6),
            "</svg>",
        )
    )


def _boxes(spans: Sequence[Span], start_ns: int, end_ns: int) -> Iterator[str]:
    # Elements' names are shared by all of a page, and a pattern in a hidden output draws nothing.
    hatching = f"lamella-{uuid.uuid4().hex[:12]}"
    yield (
        f'<pattern id="{hatching}" width="5" height="5" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="1.5" height="5" fill="white"/></pattern>'
    )
    scale = (WIDTH - LEFT - 4) / max(1, end_ns - start_ns)
    for span in spans:
        look = box(span)
        start, end = max(span.start_ns, start_ns), min(span.end_ns, end_ns)
        place = (
            f'x="{LEFT + (start - start_ns) * scale:.2f}" '
            f'y="{TOP + LANE * (span.stage + 1 - look.bottom - look.height):.1f}" '
            f'width="{max(0.3, (end - start) * scale):.2f}" height="{LANE * look.height:.1f}"'
        )
        told = f"job {span.job}: {span.track.value} {span.name}, {span.rows} rows, "
        told += f"{(span.end_ns - span.start_ns) / 1e6:.3f} ms"
        paint = f'fill="{look.colour}" fill-opacity="{look.opacity:g}"'
        yield f"<rect {place} {paint}><title>{escape(told)}</title></rect>"
        if look.hatched:
            yield f'<rect {place} fill="url(#{hatching})" pointer-events="none"/>'


def _axis(y: int, milliseconds: float) -> Iterator[str]:
    yield f'<path d="M{LEFT} {y}H{WIDTH - 4}" stroke="#888"/>'
    for tenth in range(0, 11, 2):
        x = LEFT + (WIDTH - LEFT - 4) * tenth / 10
        anchor = "start" if tenth == 0 else "end" if tenth == 10 else "middle"
        unit = " ms" if tenth == 10 else ""
        yield f'<path d="M{x:g} {y}v4" stroke="#888"/>'
        yield (
            f'<text x="{x:g}" y="{y + 16}" text-anchor="{anchor}" fill="#555">'
            f"{milliseconds * tenth / 10:.3g}{unit}</text>"
        )
