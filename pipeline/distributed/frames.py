"""Messages along the line: a header, what every stage measured so far, and rows or a failure.

[int64 header | int64 stages * TRACE_WORDS | hidden state, answers, or a failure's text]

Both sides know a message's size from the job alone, so it is received into memory that waits for
it. Times are on the clock of the rank that measured them.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch

from pipeline.bridges.link import BridgeTiming
from pipeline.distributed.failures import TEXT_ROOM
from pipeline.spans import Span, Track
from pipeline.trace import StageTrace

_HEADER = 8
_EPOCH, _NUMBER, _ROWS, _FLAG, _STAGE, _TEXT = range(6)
_TRACKS = list(Track)
_BUSY, _SPANS = 2, 6  # most of them that a stage has in one job
_SPAN = 5  # track, whether it is the answer's, start, end, rows
TRACE_WORDS = 6 + 1 + 2 * _BUSY + 1 + _SPAN * _SPANS


class Flag(IntEnum):
    """What a message brings."""

    ROWS = 0
    NOTHING = 1  # a chore's, or the job was stopped
    FAILURE = 2


class Frame:
    """Memory of one message.

    Args:
        stages: of the pipeline.
        room: bytes after the header and the traces; at least `TEXT_ROOM` are made.
        device: where the message lies; the header is always at hand in host memory, too.
    """

    def __init__(self, stages: int, room: int, device: torch.device) -> None:
        self.room = max(room, TEXT_ROOM)
        self._meta_words = _HEADER + stages * TRACE_WORDS
        self._meta_bytes = 8 * self._meta_words
        with torch.inference_mode(False):
            self._all = torch.empty(self._meta_bytes + self.room, dtype=torch.uint8, device=device)
            if device.type == "cpu":
                meta = self._all[: self._meta_bytes].view(torch.int64)
            else:
                meta = torch.empty(self._meta_words, dtype=torch.int64, pin_memory=True)
        self._meta = meta
        self._words: np.ndarray = meta.numpy()
        self.traces = self._words[_HEADER:].reshape(stages, TRACE_WORDS)

    def message(self, room: int) -> torch.Tensor:
        """The bytes that cross for a payload of `room`."""
        return self._all[: self._meta_bytes + max(room, TEXT_ROOM)]

    def payload(self, nbytes: int) -> torch.Tensor:
        """The payload's first bytes, uint8."""
        return self._all[self._meta_bytes : self._meta_bytes + nbytes]

    def write(self, epoch: int, number: int, rows: int, flag: Flag) -> None:
        """Fill in the header."""
        self._words[:_HEADER] = (epoch, number, rows, flag, 0, 0, 0, 0)

    def write_failure(self, stage: int, text: bytes) -> None:
        """Put a failure's text, at most `TEXT_ROOM` bytes, in the rows' place."""
        self._words[_STAGE], self._words[_TEXT] = stage, len(text)
        source = torch.frombuffer(bytearray(text or b" "), dtype=torch.uint8)
        self.payload(len(text)).copy_(source[: len(text)])

    def put(self) -> None:
        """Bring header and traces to where the message lies."""
        if self._all.device.type != "cpu":
            self._all[: self._meta_bytes].view(torch.int64).copy_(self._meta)

    def fetch(self) -> None:
        """Bring header and traces to the host."""
        if self._all.device.type != "cpu":
            self._meta.copy_(self._all[: self._meta_bytes].view(torch.int64))

    @property
    def turn(self) -> tuple[int, int]:
        """Epoch and number of the job."""
        return int(self._words[_EPOCH]), int(self._words[_NUMBER])

    @property
    def rows(self) -> int:
        """Rows of the hidden state."""
        return int(self._words[_ROWS])

    @property
    def flag(self) -> Flag:
        """What it brings."""
        return Flag(int(self._words[_FLAG]))

    @property
    def failure(self) -> tuple[int, bytes]:
        """The stage that failed, and the failure's text."""
        text = self.payload(int(self._words[_TEXT]))
        return int(self._words[_STAGE]), bytes(text.cpu().numpy())


def pack_trace(words: np.ndarray, trace: StageTrace, spans: list[Span], answer: str) -> None:
    """Write what a stage measured in one job, int64 [TRACE_WORDS]; `answer` names its last span."""
    busy, spans = sorted(trace.busy)[:_BUSY], spans[:_SPANS]
    flat = [
        trace.stage_ns, trace.logits_ns, trace.sent_bytes,
        trace.bridge.bridge_ns, trace.bridge.host_copy_ns, trace.bridge.device_copy_ns,
        len(busy), len(spans),
    ]  # fmt: skip
    for start, end in busy:
        flat += [start, end]
    for span in spans:
        track = _TRACKS.index(span.track)
        flat += [track, span.name == answer, span.start_ns, span.end_ns, span.rows]
    words[: len(flat)] = flat


def add_trace(words: np.ndarray, to: StageTrace, offset_ns: int) -> None:
    """Add what a stage measured in one job to its part of the call.

    `offset_ns` is what its clock is ahead.
    """
    numbers = words.tolist()
    stage_ns, logits_ns, sent, bridge_ns, host_ns, device_ns, busy, _ = numbers[:8]
    to.stage_ns += stage_ns
    to.logits_ns += logits_ns
    to.sent_bytes += sent
    to.bridge += BridgeTiming(bridge_ns, host_ns, device_ns)
    for at in range(8, 8 + 2 * busy, 2):
        to.busy.append((numbers[at] - offset_ns, numbers[at + 1] - offset_ns))


def unpack_spans(
    words: np.ndarray, stage: int, job: int, names: tuple[str, str], offset_ns: int
) -> list[Span]:
    """The spans of one job on a stage; `names` are the task's and the answer's."""
    numbers = words.tolist()
    busy, count = numbers[6:8]
    spans = []
    for at in range(8 + 2 * busy, 8 + 2 * busy + _SPAN * count, _SPAN):
        track, answers, start, end, rows = numbers[at : at + _SPAN]
        name = names[answers]
        spans.append(
            Span(stage, _TRACKS[track], start - offset_ns, end - offset_ns, job, name, rows)
        )
    return spans
