"""What is written down comes back, its shares are right, and its pictures show it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from io import BytesIO
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.errors import InvalidInputError, UnsupportedError
from pipeline.gantt_svg import MOST_BOXES
from pipeline.spans import Span
from pipeline.timeline import Recorder, Timeline, Track
from tests.pipeline.recorded import START, recorded

C, S, R, W = Track.COMPUTE, Track.SEND, Track.RECEIVE, Track.WAIT


def of(stages: int, *spans: tuple[int, Track, int, int, int, str, int], keep: int = 64) -> Recorder:
    recorder = Recorder(stages, keep=keep)
    for span in spans:
        recorder.record(*span)
    return recorder


def two_stages() -> Recorder:
    """Job 1 from 0 to 70, job 2 from 30 to 100."""
    return of(
        2,
        (0, C, 0, 20, 1, "decode", 4),
        (0, S, 20, 30, 1, "decode", 4),
        (1, W, -50, 30, 1, "decode", 4),
        (0, C, 30, 50, 2, "decode", 4),
        (1, R, 30, 40, 1, "decode", 4),
        (1, C, 40, 70, 1, "decode", 4),
        (0, S, 50, 60, 2, "decode", 4),
        (1, C, 70, 100, 2, "decode", 4),
        (0, C, 90, 100, 3, "release", 0),
    )


def test_figures() -> None:
    timeline = two_stages().timeline()
    assert (timeline.start_ns, timeline.end_ns, timeline.seconds) == (0, 100, 1e-7)
    assert timeline.busy_share == pytest.approx([0.7, 0.7])
    assert timeline.bubble_share == pytest.approx(0.3)
    assert timeline.all_busy_share == pytest.approx(0.4)  # 30 to 60, 90 to 100
    assert timeline.wait_seconds == pytest.approx([0, 30e-9])  # what lies before the work is cut
    assert timeline.effective_groups == pytest.approx(1.4)
    assert repr(timeline) == (
        "Timeline(0.0 ms, 9 spans, bubbles 30%, all stages busy 40%, 1.40 jobs in flight; "
        "stages busy 70%, 70%)"
    )


def test_a_part_of_the_time() -> None:
    whole = two_stages()
    for part in (whole.timeline(25, 45), whole.timeline().between(25e-9, 45e-9)):
        assert (part.start_ns, part.end_ns) == (25, 45)
        assert part.busy_share == pytest.approx([1, 0.75])
        assert part.effective_groups == pytest.approx((20 + 15) / 20)
        assert [span.job for span in part.spans if span.track is C] == [2, 1]
    assert whole.timeline(500, 600).busy_share == [0, 0]
    assert whole.timeline(until_ns=50).seconds == pytest.approx(50e-9)
    for start, end in ((-1, 1), (2, 2), (3, 1), (0, float("nan"))):
        with pytest.raises(InvalidInputError, match="expected 0 <= start_s < end_s"):
            whole.timeline().between(start, end)


SPANS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(Track),
        st.integers(0, 30),
        st.integers(0, 12),
        st.integers(0, 4),
        st.integers(0, 1),
    ),
    max_size=25,
)


@given(SPANS, st.integers(0, 20), st.integers(1, 25))
def test_figures_equal_those_counted_tick_by_tick(
    drawn: list[tuple[int, Track, int, int, int, int]], since: int, length: int
) -> None:
    # Whatever the order and overlap: spans of one stage may nest where a device works by itself.
    spans = [
        Span(s, track, at, at + n, job, "decode", rows) for s, track, at, n, job, rows in drawn
    ]
    timeline = of(3, *spans).timeline(since, since + length)
    ticks = range(since, since + length)

    def working(stage: int, tick: int) -> bool:
        return any(
            s.stage == stage and s.track is not W and s.start_ns <= tick < s.end_ns for s in spans
        )

    seen = [s for s in spans if s.end_ns > since and s.start_ns < since + length]
    works = [[s for s in seen if s.job == job and s.rows and s.track is not W] for job in range(5)]
    flying = sum(
        min(s.start_ns for s in work) <= tick < max(s.end_ns for s in work)
        for tick in ticks
        for work in works
        if work
    )
    at_work = [[working(stage, tick) for stage in range(3)] for tick in ticks]
    busy = [sum(stage) / length for stage in zip(*at_work, strict=True)]
    assert timeline.busy_share == pytest.approx(busy)
    assert timeline.bubble_share == pytest.approx(1 - sum(busy) / 3)
    assert timeline.all_busy_share == pytest.approx(sum(map(all, at_work)) / length)
    assert timeline.effective_groups == pytest.approx(flying / length)
    assert sorted(timeline.spans) == sorted(seen)


def test_the_oldest_are_dropped_and_not_taken_for_idle_time() -> None:
    recorder = Recorder(2, keep=10)
    for at in range(100):
        recorder.record(0, C, at, at + 1, at, "decode", 1)
    recorder.record(1, C, 0, 100, 0, "decode", 1)
    timeline = recorder.timeline()
    assert (timeline.start_ns, timeline.end_ns) == (90, 100)
    assert timeline.busy_share == [1, 1]
    assert [span.start_ns for span in timeline.spans] == [0, *range(90, 100)]
    assert recorder.busy_seconds() == pytest.approx([100e-9, 100e-9])


def test_waits_do_not_push_out_work() -> None:
    recorder = Recorder(1, keep=10)
    for at in range(0, 100, 10):
        for wait in range(at, at + 9):
            recorder.record(0, W, wait, wait + 1, at, "decode", 1)
        recorder.record(0, C, at + 9, at + 10, at, "decode", 1)
    timeline = recorder.timeline()
    assert (timeline.start_ns, timeline.end_ns, timeline.lost_ns) == (9, 100, 0)
    assert sum(span.track is C for span in timeline.spans) == 10
    [latest] = recorder.latest(4)
    assert [(span.track, span.end_ns) for span in latest] == [(C, 100), (W, 99), (W, 98), (W, 97)]


def test_what_made_room_is_told() -> None:
    recorder = Recorder(2, keep=10)
    recorder.record(1, C, 3, 100, 0, "decode", 1)
    for at in range(5, 100):
        recorder.record(0, C, at, at + 1, at, "decode", 1)
    timeline = recorder.timeline()
    assert (timeline.start_ns, timeline.lost_ns) == (90, 87)
    assert timeline.lost_seconds == pytest.approx(87e-9)
    assert recorder.timeline(95).lost_ns == 0  # nobody asked for more


def test_reading_while_stages_write() -> None:
    recorder = Recorder(2, keep=5000)

    def work(stage: int) -> None:
        for at in range(30_000):
            recorder.record(stage, C if at % 2 else W, at, at + 1, at, "decode", 1)
            recorder.count("running", at, at)

    threads = [threading.Thread(target=work, args=(stage,)) for stage in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for lane in recorder.latest(500):
            starts = [span.start_ns for span in lane]
            assert starts == sorted(starts, reverse=True)
            assert len(lane) <= 500
        recorder.timeline()
    assert recorder.busy_seconds() == recorder.wait_seconds() == pytest.approx([15e-6, 15e-6])
    assert len(recorder.timeline(0).spans) == 20_000


def test_counters() -> None:
    recorder = two_stages()
    recorder.count("running", 10, 3)
    recorder.count("running", 90, 2.5)
    recorder.count("running", 300, 1)
    assert [tuple(s) for s in recorder.timeline().samples] == [
        ("running", 10, 3),
        ("running", 90, 2.5),
    ]


def test_rows_are_ready_for_a_data_frame() -> None:
    timeline = two_stages().timeline()
    rows = timeline.rows()
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows) == len(timeline.spans)
    assert rows[-1] == {
        "stage": 0,
        "track": "compute",
        "start_us": 0.09,
        "duration_us": 0.01,
        "job": 3,
        "name": "release",
        "rows": 0,
    }


def test_a_timeline_of_nothing() -> None:
    timeline = Recorder(2).timeline()
    assert timeline.seconds == timeline.all_busy_share == timeline.effective_groups == 0
    assert timeline.bubble_share == 1
    assert timeline.spans == ()
    ElementTree.fromstring(timeline._repr_html_())
    timeline.plot().savefig(BytesIO())


@pytest.mark.parametrize(("stages", "keep"), [(0, 1), (1, 0)])
def test_a_recorder_of_nothing(stages: int, keep: int) -> None:
    with pytest.raises(InvalidInputError, match="expected 1 or more"):
        Recorder(stages, keep=keep)


@pytest.mark.parametrize("stages", [2, 8])
def test_plot(stages: int) -> None:
    timeline = recorded(stages, stages).timeline()
    figure = timeline.plot()
    [axes] = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        f"stage {stage}, {share:.0%} busy" for stage, share in enumerate(timeline.busy_share)
    ]
    heights = list(axes.get_yticks())
    assert heights == sorted(heights, reverse=True)  # stage 0 on top
    assert axes.get_xlim() == pytest.approx((0, timeline.seconds * 1e3))
    assert axes.get_xlabel() == "ms"
    legend = axes.get_legend()
    assert legend is not None
    kinds = {text.get_text() for text in legend.get_texts()}
    assert kinds == {"prefill", "decode", "logits", "send, receive", "waiting", "chore"}
    hatched = [c for c in axes.collections if c.get_hatch()]
    drawn = sum(len(c.get_paths()) for c in hatched)
    assert drawn == sum(s.name == "prefill" and s.track is C for s in timeline.spans)
    figure.savefig(BytesIO(), format="png")


def test_a_colour_for_each_job() -> None:
    from matplotlib.colors import to_rgb

    [axes] = recorded(2, 2).timeline().plot().axes
    drawn = [c.get_facecolor() for c in axes.collections]
    colours = {to_rgb(tuple(colour[0])) for colour in drawn if len(colour)}
    assert len(colours) >= 6


def test_a_stages_spans_lie_beside_its_name() -> None:
    from matplotlib.collections import PolyCollection

    timeline = of(3, (2, C, 0, 10, 0, "decode", 1), (0, C, 0, 10, 0, "decode", 1)).timeline()
    [axes] = timeline.plot().axes
    boxes = [c.get_paths()[0].get_extents() for c in axes.collections if type(c) is PolyCollection]
    middles = [(box.y0 + box.y1) / 2 for box in boxes]
    ticks = axes.get_yticks()
    assert middles == pytest.approx([ticks[span.stage] for span in timeline.spans], abs=0.2)


def test_plot_into_given_axes() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    mine, axes = pyplot.subplots()
    try:
        assert recorded(2, 2).timeline().plot(axes) is mine
        recorded(2, 2).timeline().plot()
        assert pyplot.get_fignums() == [*before, mine.number]  # its own is not shown a second time
    finally:
        pyplot.close(mine)


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.patches", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'lamella\[plot\]'"):
        two_stages().timeline().plot()


def boxes(timeline: Timeline) -> list[ElementTree.Element]:
    tree = ElementTree.fromstring(timeline._repr_html_())
    return [rect for rect in tree.iter() if rect.tag.endswith("rect") and len(rect)]


def test_a_notebook_shows_every_span() -> None:
    timeline = recorded(2, 2).timeline()
    told = [box[0].text or "" for box in boxes(timeline)]
    assert len(told) == len(timeline.spans)
    assert "job 0: compute prefill, 30 rows" in told[0]
    assert timeline._repr_html_().count("url(#") == sum("compute prefill" in t for t in told)


def test_a_notebook_shows_the_last_of_many() -> None:
    timeline = recorded(2, 2, steps=1000).timeline()
    shown = boxes(timeline)
    assert len(shown) == MOST_BOXES < len(timeline.spans)
    assert "Here the last" in timeline._repr_html_()
    assert min(float(box.attrib["x"]) for box in shown) >= 0


def test_spans_are_in_the_order_of_their_starts() -> None:
    timeline = recorded(4, 3).timeline()
    starts = [span.start_ns for span in timeline.spans]
    assert starts == sorted(starts)
    assert timeline.start_ns == START


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, pipeline.timeline, pipeline.live, pipeline.chrome_trace, pipeline.cli.tracing;"
        "print([m for m in ('matplotlib', 'prometheus_client', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
