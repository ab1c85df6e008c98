"""Shares and rates of the last seconds, for whoever watches a pipeline while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kernels.errors import InvalidInputError
from pipeline.spans import DECODE, PREFILL, Track
from pipeline.timeline import Recorder, Timeline

MOST_SPANS = 1024
"""Looked at per stage for one set of figures: where stages are quick, the window is shorter."""

_OF_WINDOW = (
    "window_s",
    "bubble_share",
    "all_busy_share",
    "effective_groups",
    "stage_busy_share",
    "stage_wait_share",
    "decode_tokens_per_s",
    "prefill_tokens_per_s",
)


class LiveMetrics:
    """Figures of a recorder's last `window_s` seconds; cheap enough for ten times a second.

    Args:
        recorder: what the stages write to.
        window_s: seconds, above 0.
        clock: nanoseconds, on the recorder's clock.
    """

    def __init__(
        self,
        recorder: Recorder,
        window_s: float = 2.0,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        if not window_s > 0:
            raise InvalidInputError(f"window_s: expected seconds above 0, got {window_s}")
        self._recorder = recorder
        self._window_ns = round(window_s * 1e9)
        self._clock = clock

    def json(self) -> dict[str, Any]:
        """All figures, ready for JSON; those of the window are None if no stage worked in it.

        Shares are of the window's time, tokens what the last stage did, and the totals all time.
        """
        window = self.window()
        return {
            **(dict.fromkeys(_OF_WINDOW) if window is None else _figures(window)),
            "stage_busy_s_total": self._recorder.busy_seconds(),
            "stage_wait_s_total": self._recorder.wait_seconds(),
        }

    def window(self) -> Timeline | None:
        """What the stages last did; None if they did nothing in the last `window_s` seconds.

        It ends with the last span, as work is written down when it is over.
        """
        lanes = self._recorder.latest(MOST_SPANS)
        work = [span for lane in lanes for span in lane if span.track is not Track.WAIT]
        end = max((span.end_ns for span in work), default=0)
        if not work or end <= self._clock() - self._window_ns:
            return None
        # What a stage did before the oldest span that was looked at is not known.
        known = [lane[-1].start_ns for lane in lanes if len(lane) == MOST_SPANS]
        start = max(end - self._window_ns, min(span.start_ns for span in work), *known)
        if start >= end:
            return None
        spans = sorted((span for lane in lanes for span in lane), key=lambda span: span.start_ns)
        inside = tuple(span for span in spans if span.end_ns > start)
        return Timeline(self._recorder.stages, inside, (), start, end)


def _figures(window: Timeline) -> dict[str, Any]:
    values = (
        window.seconds,
        window.bubble_share,
        window.all_busy_share,
        window.effective_groups,
        window.busy_share,
        [seconds / window.seconds for seconds in window.wait_seconds],
        _rate(window, DECODE),
        _rate(window, PREFILL),
    )
    return dict(zip(_OF_WINDOW, values, strict=True))


def _rate(window: Timeline, name: str) -> float:
    """Rows a second that the last stage computed under a name."""
    last = window.stages - 1
    rows = sum(
        span.rows
        for span in window.spans
        if span.stage == last and span.name == name and span.track is Track.COMPUTE
    )
    return rows / window.seconds
