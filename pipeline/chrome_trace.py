"""A timeline as a Chrome trace, which Perfetto (https://ui.perfetto.dev) and chrome://tracing open.

Format: "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernels.errors import InvalidInputError
from pipeline.spans import Span, Track
from pipeline.timeline import Timeline

Event = dict[str, Any]

THREADS = {Track.COMPUTE: 1, Track.SEND: 2, Track.RECEIVE: 3}
"""Numbers of a stage's tracks, from 1, as viewers take thread 0 and process 0 for idle time."""


def write_chrome_trace(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Write a timeline to `path`; what was there stays until the new file is whole.

    A process for each stage with threads compute, send and receive (waiting is what is left
    empty), an arrow for each hand-over, and the counters in a process of their own. Times are
    microseconds from the first event. Raises `InvalidInputError` if the file cannot be written.
    """
    target = check_writable(path)
    temporary = _beside(target)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit":"ms","traceEvents":[')
            for number, event in enumerate(events(timeline)):
                file.write(",\n" if number else "\n")
                file.write(json.dumps(event, separators=(",", ":")))
            file.write("\n]}\n")
        temporary.replace(target)
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Where the trace goes, links followed. Raises `InvalidInputError` if it could not be written.

    To be asked before a run, as a trace is written after it; leaves nothing behind.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise InvalidInputError(f"{path}: there is no folder {target.parent}")
    if target.exists() and not target.is_file():
        raise InvalidInputError(f"{path}: expected a file, or nothing yet")
    if target.exists() and not os.access(target, os.W_OK):
        raise InvalidInputError(f"{path}: cannot be written: it is read-only")
    temporary = _beside(target)
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written: {error.strerror}") from error
    return target


def events(timeline: Timeline) -> Iterator[Event]:
    """All events of the trace: names first, then slices, arrows and counters."""
    moments = [span.start_ns for span in timeline.spans if span.track in THREADS]
    origin = min([*moments, *(sample.at_ns for sample in timeline.samples)], default=0)
    yield from _names(timeline)
    for span in timeline.spans:
        if span.track in THREADS:
            yield {
                "ph": "X",
                "name": span.name,
                "cat": span.track.value,
                **_place(span),
                "ts": _us(span.start_ns - origin),
                "dur": _us(span.end_ns - span.start_ns),
                "args": {"job": span.job, "rows": span.rows},
            }
    for number, (sent, taken) in enumerate(_hand_overs(timeline), 1):
        arrow = {"cat": "job", "name": f"job {sent.job}", "id": number}
        # Neither end may lie outside its slice, nor the arrow point back in time.
        at = max(taken.start_ns, sent.start_ns)
        yield {"ph": "s", **arrow, **_place(sent), "ts": _us(sent.start_ns - origin)}
        yield {"ph": "f", "bp": "e", **arrow, **_place(taken), "ts": _us(at - origin)}
    for sample in timeline.samples:
        yield {
            "ph": "C",
            "name": sample.name,
            "pid": timeline.stages + 1,
            "ts": _us(sample.at_ns - origin),
            "args": {"value": sample.value},
        }


def _names(timeline: Timeline) -> Iterator[Event]:
    """Of processes and threads, and the order in which they are shown: counters first."""
    processes = [f"stage {stage}" for stage in range(timeline.stages)]
    for pid, name in enumerate([*processes, "pipeline"], 1):
        place = 0 if name == "pipeline" else pid
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": place}}
    for pid in range(1, timeline.stages + 1):
        for track, tid in THREADS.items():
            thread = {"ph": "M", "pid": pid, "tid": tid}
            yield {**thread, "name": "thread_name", "args": {"name": track.value}}
            yield {**thread, "name": "thread_sort_index", "args": {"sort_index": tid}}


def _hand_overs(timeline: Timeline) -> Iterator[tuple[Span, Span]]:
    """Each send, with what the next stage did with it: receiving, or computing if it need not."""
    done: dict[tuple[int, int, Track], list[Span]] = defaultdict(list)
    for span in timeline.spans:
        done[span.job, span.stage, span.track].append(span)
    for (job, stage, track), sends in done.items():
        if track is Track.SEND:
            taken = (done.get((job, stage + 1, t)) for t in (Track.RECEIVE, Track.COMPUTE))
            for sent, into in zip(sends, next(filter(None, taken), ()), strict=False):
                if into.end_ns >= sent.start_ns:  # else the one that it went to is not kept
                    yield sent, into


def _place(span: Span) -> dict[str, int]:
    return {"pid": span.stage + 1, "tid": THREADS[span.track]}


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def _us(nanoseconds: int) -> float:
    return nanoseconds / 1e3
