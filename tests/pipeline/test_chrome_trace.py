"""The trace keeps the format's rules, says what the timeline says, and is written whole or not."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from kernels.errors import InvalidInputError
from pipeline.chrome_trace import check_writable, write_chrome_trace
from pipeline.timeline import Recorder, Timeline, Track
from tests.pipeline.recorded import recorded

C, S, R, W = Track.COMPUTE, Track.SEND, Track.RECEIVE, Track.WAIT

Event = dict[str, Any]


def written(timeline: Timeline, path: Path) -> list[Event]:
    write_chrome_trace(timeline, path)
    document = json.loads(path.read_text())
    assert document["displayTimeUnit"] == "ms"
    events: list[Event] = document["traceEvents"]
    return events


def ns(event: Event, key: str = "ts") -> int:
    """Exact: microseconds have three digits behind the point."""
    value = round(event[key] * 1000)
    assert value == pytest.approx(event[key] * 1000)
    return value


def arrows(events: list[Event]) -> list[tuple[Event, Event]]:
    ends: dict[int, dict[str, Event]] = defaultdict(dict)
    for event in events:
        if event["ph"] in "sf":
            assert event["ph"] not in ends[event["id"]], "an arrow has one start and one end"
            ends[event["id"]][event["ph"]] = event
    return [(pair["s"], pair["f"]) for pair in ends.values()]


def slice_at(events: list[Event], end: Event) -> Event:
    """The slice that an arrow's end lies in; of several, the one that starts there."""
    inside = [
        e
        for e in events
        if e["ph"] == "X" and (e["pid"], e["tid"]) == (end["pid"], end["tid"])
        if ns(e) <= ns(end) <= ns(e) + ns(e, "dur")
    ]
    assert inside, f"{end} lies in no slice"
    return max(inside, key=ns)


def check_format(events: list[Event]) -> None:
    """The rules that viewers rely on; a trace that breaks one is drawn wrong, silently."""
    named = {(e["pid"], e.get("tid")) for e in events if e["name"].endswith("_name")}
    tracks: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        assert event["ph"] in "MXsfC"
        assert event["pid"] > 0
        if event["ph"] == "M":
            continue
        assert ns(event) >= 0
        assert (event["pid"], event.get("tid")) in named
        if event["ph"] == "X":
            assert ns(event, "dur") >= 0
            tracks[event["pid"], event["tid"]].append((ns(event), ns(event, "dur")))
    for slices in tracks.values():
        open_ends: list[int] = []
        for start, length in sorted(slices, key=lambda one: (one[0], -one[1])):
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or start + length <= open_ends[-1], "slices nest or follow"
            open_ends.append(start + length)
    for sent, taken in arrows(events):
        assert (sent["cat"], sent["name"]) == (taken["cat"], taken["name"])
        assert taken["bp"] == "e"
        assert ns(sent) <= ns(taken)
        source, target = slice_at(events, sent), slice_at(events, taken)
        assert source["cat"] == "send"
        assert target["pid"] == source["pid"] + 1
        assert source["args"]["job"] == target["args"]["job"]
        # Viewers read in the file's order where times are equal: slices before their arrows.
        assert events.index(source) < events.index(sent)
        assert events.index(target) < events.index(taken)


@pytest.mark.parametrize(("stages", "groups"), [(1, 1), (2, 2), (4, 5)])
@pytest.mark.parametrize("receiving", [True, False])
def test_format(stages: int, groups: int, receiving: bool, tmp_path: Path) -> None:
    timeline = recorded(stages, groups, receiving=receiving).timeline()
    events = written(timeline, tmp_path / "trace.json")
    check_format(events)
    slices = [e for e in events if e["ph"] == "X"]
    assert len(slices) == sum(span.track is not W for span in timeline.spans)
    assert {e["cat"] for e in slices} <= {"compute", "send", "receive"}
    assert min(ns(e) for e in slices) == 0
    found = arrows(events)
    assert len(found) == groups * 6 * (stages - 1)
    into = {slice_at(events, taken)["cat"] for _, taken in found}
    assert into == ({"receive" if receiving else "compute"} if stages > 1 else set())


def test_names_and_order(tmp_path: Path) -> None:
    events = written(recorded(3, 2).timeline(), tmp_path / "trace.json")
    values = {
        name: {(e["pid"], e.get("tid")): e["args"] for e in events if e["name"] == name}
        for name in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
    }
    order = {pid: args["sort_index"] for (pid, _), args in values["process_sort_index"].items()}
    named = {pid: args["name"] for (pid, _), args in values["process_name"].items()}
    assert [named[pid] for pid in sorted(named, key=order.__getitem__)] == [
        "pipeline",
        "stage 0",
        "stage 1",
        "stage 2",
    ]
    threads = [args["name"] for (pid, _), args in values["thread_name"].items() if pid == 1]
    assert threads == ["compute", "send", "receive"]


def test_what_a_slice_says(tmp_path: Path) -> None:
    recorder = Recorder(1)
    recorder.record(0, C, 1_000_000_123, 1_000_001_000, 0, "prefill", 30)
    recorder.record(0, C, 1_000_002_126, 1_000_003_000, 1, "decode", 4)
    events = written(recorder.timeline(), tmp_path / "trace.json")
    assert [e for e in events if e["ph"] == "X"][1] == {
        "ph": "X",
        "name": "decode",
        "cat": "compute",
        "pid": 1,
        "tid": 1,
        "ts": 2.003,
        "dur": 0.874,
        "args": {"job": 1, "rows": 4},
    }


def test_counters(tmp_path: Path) -> None:
    recorder = Recorder(2)
    recorder.record(0, C, 1000, 2000, 0, "decode", 1)
    recorder.count("running", 1500, 3)
    recorder.count("waiting", 1500, 2.5)
    events = written(recorder.timeline(), tmp_path / "trace.json")
    check_format(events)
    assert [e for e in events if e["ph"] == "C"] == [
        {"ph": "C", "name": "running", "pid": 3, "ts": 0.5, "args": {"value": 3}},
        {"ph": "C", "name": "waiting", "pid": 3, "ts": 0.5, "args": {"value": 2.5}},
    ]


def test_hand_overs_that_go_nowhere_have_no_arrow(tmp_path: Path) -> None:
    recorder = Recorder(2)
    recorder.record(0, S, 10, 20, 1, "decode", 4)  # the next stage failed
    recorder.record(1, R, 0, 5, 2, "decode", 4)  # what it is of is no longer kept
    recorder.record(0, S, 30, 50, 3, "decode", 4)
    recorder.record(1, R, 25, 55, 3, "decode", 4)  # was ready before there was something
    recorder.record(1, R, 60, 65, 4, "decode", 4)  # an earlier hand-over's
    recorder.record(0, S, 70, 80, 4, "decode", 4)
    events = written(recorder.timeline(), tmp_path / "trace.json")
    check_format(events)
    assert [slice_at(events, sent)["args"]["job"] for sent, _ in arrows(events)] == [3]


def test_a_trace_of_nothing(tmp_path: Path) -> None:
    events = written(Recorder(2).timeline(), tmp_path / "trace.json")
    check_format(events)
    assert {e["ph"] for e in events} == {"M"}


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    for path, why in (
        (tmp_path / "none" / "t.json", "there is no folder"),
        (tmp_path / "folder.json", "expected a file"),
        (Path("/dev/null"), "expected a file"),  # a rename onto it would be everyone's loss
        (Path("/proc/t.json"), "cannot be written"),
    ):
        for attempt in (check_writable, lambda p: write_chrome_trace(Recorder(1).timeline(), p)):
            with pytest.raises(InvalidInputError, match=why):
                attempt(path)
    assert Path("/dev/null").is_char_device()


def test_checking_changes_nothing(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text("old")
    check_writable(old)
    check_writable(tmp_path / "new.json")
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert old.read_text() == "old"


def test_nothing_half_done(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text("old")
    recorder = recorded(2, 2)
    recorder.count("running", recorder.timeline().end_ns, object())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_chrome_trace(recorder.timeline(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_followed(tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    real.write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to(real)
    write_chrome_trace(Recorder(1).timeline(), link)
    assert link.is_symlink()
    assert json.loads(real.read_text())["traceEvents"]
