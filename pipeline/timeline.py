"""What every stage did when: workers write it down, and a snapshot tells shares and draws it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from kernels.errors import InvalidInputError
from pipeline.gantt import draw
from pipeline.gantt_svg import svg
from pipeline.spans import KEEP, Interval, Sample, Span, Track, busy, common, in_flight, within

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")

_WAIT = Track.WAIT


@dataclass(frozen=True, repr=False)
class Timeline:
    """What `stages` stages did between two moments; spans that reach over an edge are whole.

    Shares are of the time between the moments, and 0 (bubbles: 1) where that is none. Times are
    on the `time.perf_counter_ns` clock.
    """

    stages: int
    spans: tuple[Span, ...]  # in order of their starts
    samples: tuple[Sample, ...]  # of counters, in order of time
    start_ns: int
    end_ns: int
    lost_ns: int = 0  # before the start, of which the spans are no longer kept

    @property
    def seconds(self) -> float:
        """Wall time."""
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def lost_seconds(self) -> float:
        """Wall time before the start that was recorded too, and had to make room."""
        return self.lost_ns / 1e9

    @cached_property
    def busy(self) -> list[list[Interval]]:
        """Per stage, when it computed, sent or received; in order, without overlaps."""
        return busy(self.spans, self.stages)

    @property
    def busy_share(self) -> list[float]:
        """Per stage, the share of the time that it computed, sent or received."""
        return [self._share(lane) for lane in self.busy]

    @property
    def bubble_share(self) -> float:
        """Share of all stages' time that went unused."""
        return 1 - sum(self.busy_share) / self.stages

    @property
    def all_busy_share(self) -> float:
        """Share of the time with every stage busy."""
        return self._share(common(self.busy))

    @property
    def wait_seconds(self) -> list[float]:
        """Per stage, time spent waiting for its input."""
        lanes: list[list[Interval]] = [[] for _ in range(self.stages)]
        for span in self.spans:
            if span.track is _WAIT:
                lanes[span.stage].append((span.start_ns, span.end_ns))
        return [within(lane, self.start_ns, self.end_ns) / 1e9 for lane in lanes]

    @property
    def effective_groups(self) -> float:
        """Jobs in flight, averaged over time: each from its first work's start to its last's end.

        Waiting is no work, and chores, which have no rows, are no jobs here.
        """
        return self._share(in_flight(self.spans))

    def rows(self) -> list[dict[str, Any]]:
        """A dict for each span, ready for `pandas.DataFrame`; microseconds since the start."""
        return [
            {
                "stage": span.stage,
                "track": span.track.value,
                "start_us": (span.start_ns - self.start_ns) / 1e3,
                "duration_us": (span.end_ns - span.start_ns) / 1e3,
                "job": span.job,
                "name": span.name,
                "rows": span.rows,
            }
            for span in self.spans
        ]

    def between(self, start_s: float, end_s: float) -> Timeline:
        """The part between two moments, in seconds since this one's start.

        Raises `InvalidInputError` unless 0 <= start_s < end_s.
        """
        if not 0 <= start_s < end_s:
            raise InvalidInputError(
                f"between: expected 0 <= start_s < end_s, got {start_s} and {end_s}"
            )
        start, end = (self.start_ns + round(s * 1e9) for s in (start_s, min(end_s, self.seconds)))
        return Timeline(
            self.stages,
            tuple(span for span in self.spans if span.end_ns > start and span.start_ns < end),
            tuple(sample for sample in self.samples if start <= sample.at_ns <= end),
            start,
            max(start, end),
        )

    def plot(self, ax: Axes | None = None) -> Figure:
        """A Gantt chart: a lane for each stage, a colour for each job, prefill hatched.

        Draws into `ax` if given; a notebook shows the figure once either way. Raises
        `UnsupportedError` without matplotlib.
        """
        return draw(*self._chart(), ax)

    def __repr__(self) -> str:
        shares = ", ".join(f"{share:.0%}" for share in self.busy_share)
        return (
            f"Timeline({self.seconds * 1e3:.1f} ms, {len(self.spans)} spans, {self._summary()}; "
            f"stages busy {shares})"
        )

    def _repr_html_(self) -> str:
        return svg(*self._chart())

    def _summary(self) -> str:
        return (
            f"bubbles {self.bubble_share:.0%}, all stages busy {self.all_busy_share:.0%}, "
            f"{self.effective_groups:.2f} jobs in flight"
        )

    def _chart(self) -> tuple[tuple[Span, ...], list[str], int, int, str]:
        labels = [f"stage {i}, {share:.0%} busy" for i, share in enumerate(self.busy_share)]
        return self.spans, labels, self.start_ns, self.end_ns, self._summary()

    def _share(self, intervals: list[Interval]) -> float:
        wall = self.end_ns - self.start_ns
        return within(intervals, self.start_ns, self.end_ns) / wall if wall else 0.0


class Recorder:
    """Takes down what stages do; anyone may read meanwhile.

    A stage's spans come from its worker, or, where its device's times are known late, from whoever
    waits for the job; sums over all time are exact with one writer at a time.

    Args:
        stage_count: number of stages.
        keep: spans of work kept for each stage, as many of waiting, and samples in all; the oldest
            go first.
    """

    def __init__(self, stage_count: int, *, keep: int = KEEP) -> None:
        if stage_count < 1 or keep < 1:
            raise InvalidInputError(
                f"stage_count and keep: expected 1 or more, got {stage_count} and {keep}"
            )
        self.stages = stage_count
        self._lanes = [_Lane(keep) for _ in range(stage_count)]
        self._samples: deque[Sample] = deque(maxlen=keep)

    def record(
        self, stage: int, track: Track, start_ns: int, end_ns: int, job: int, name: str, rows: int
    ) -> None:
        """Note a span (see `Span`) once it is over. No lock: a deque's append is one step."""
        lane = self._lanes[stage]
        span = Span(stage, track, start_ns, end_ns, job, name, rows)
        if track is _WAIT:
            lane.waits.append(span)
            lane.wait_ns += end_ns - start_ns
            return
        if lane.first_ns is None:
            lane.first_ns = start_ns
        lane.work.append(span)
        lane.busy_ns += end_ns - start_ns

    def count(self, name: str, at_ns: int, value: float) -> None:
        """Note what a counter stands at."""
        self._samples.append(Sample(name, at_ns, value))

    def busy_seconds(self) -> list[float]:
        """Per stage, all that it ever spent on computing, sending and receiving."""
        return [lane.busy_ns / 1e9 for lane in self._lanes]

    def wait_seconds(self) -> list[float]:
        """Per stage, all that it ever spent waiting for its input."""
        return [lane.wait_ns / 1e9 for lane in self._lanes]

    def timeline(self, since_ns: int | None = None, until_ns: int | None = None) -> Timeline:
        """What was done between two moments on the `time.perf_counter_ns` clock.

        By default from the first work that is kept (of every stage, if some was dropped) to the
        end of the last.
        """
        # There is hardly a wait without work after it, so work is what makes room first.
        waits = [span for lane in self._lanes for span in _copied(lane.waits, list)]
        lanes = [_copied(lane.work, list) for lane in self._lanes]
        work = [span for lane in lanes for span in lane]
        lost_ns = 0
        if since_ns is None:
            since_ns = min((span.start_ns for span in work), default=until_ns or 0)
            # Before a stage's oldest span is nothing known, unless that was its first.
            full = [s for s, lane in zip(lanes, self._lanes, strict=True) if lane.full(s)]
            since_ns = max([since_ns, *(spans[0].start_ns for spans in full)])
            firsts = [lane.first_ns for lane in self._lanes if lane.first_ns is not None]
            lost_ns = max(0, since_ns - min(firsts, default=since_ns))
        if until_ns is None:
            until_ns = max((span.end_ns for span in work), default=since_ns)
        start, end = since_ns, max(since_ns, until_ns)
        inside = (s for s in (*work, *waits) if s.end_ns > start and s.start_ns < end)
        samples = (s for s in _copied(self._samples, list) if start <= s.at_ns <= end)
        return Timeline(
            self.stages,
            tuple(sorted(inside, key=lambda span: span.start_ns)),
            tuple(sorted(samples, key=lambda sample: sample.at_ns)),
            start,
            end,
            lost_ns,
        )

    def latest(self, most: int) -> list[list[Span]]:
        """Per stage, its last `most` spans, latest first; cheap, however many are kept."""

        def last(spans: deque[Span]) -> list[Span]:
            return list(islice(reversed(spans), most))

        both = ([*_copied(lane.work, last), *_copied(lane.waits, last)] for lane in self._lanes)
        return [sorted(spans, key=_end, reverse=True)[:most] for spans in both]


class _Lane:
    """What one stage's worker wrote."""

    def __init__(self, keep: int) -> None:
        self.work: deque[Span] = deque(maxlen=keep)
        self.waits: deque[Span] = deque(maxlen=keep)
        self.first_ns: int | None = None  # start of the first work
        self.busy_ns = 0
        self.wait_ns = 0

    def full(self, copied: list[Span]) -> bool:
        return len(copied) == self.work.maxlen


def _end(span: Span) -> int:
    return span.end_ns


def _copied(source: deque[T], copy: Callable[[deque[T]], list[T]]) -> list[T]:
    """A copy, though others may append. CPython copies in one step, but does not promise it."""
    while True:
        try:
            return copy(source)
        except RuntimeError:  # it changed meanwhile
            continue
