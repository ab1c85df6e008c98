"""Profile lines on standard error, one for every eighth batch call."""

from __future__ import annotations

import json
import os
import sys
from typing import TextIO

from pipeline.hidden import PipelineHidden
from pipeline.modes import StageBridge
from pipeline.stats import DecodeCall, micros

EVERY = 8


def profile_enabled() -> bool:
    """Whether `LAMELLA_DECODE_PROFILE=1`; read once, when a pipeline is built."""
    return os.environ.get("LAMELLA_DECODE_PROFILE") == "1"


class DecodeProfile:
    """Counts batch calls and prints every eighth, starting with the first.

    Args:
        enabled: whether anything is counted or printed.
        stream: where to; None is `sys.stderr` at the time of the line.
    """

    def __init__(self, enabled: bool, stream: TextIO | None = None) -> None:
        self.enabled = enabled
        self._stream = stream
        self._calls = 0

    def record(self, call: DecodeCall, bridge: StageBridge, hidden: PipelineHidden | None) -> None:
        """Take note of one batch call."""
        if not self.enabled:
            return
        number, self._calls = self._calls, self._calls + 1
        if number % EVERY == 0:
            print(_line(number, call, bridge, hidden), file=self._stream or sys.stderr, flush=True)


def _line(number: int, call: DecodeCall, bridge: StageBridge, hidden: PipelineHidden | None) -> str:
    if call.plan.overlapped:
        shape = (
            f"mode=overlapped microbatch_size={call.plan.microbatch_size} "
            f"microbatch_count={call.plan.microbatch_count}"
        )
    else:
        metadata = hidden.metadata() if hidden is not None else None
        shape = f"hidden={json.dumps(metadata, separators=(',', ':'))} mode=batch"
    timing = call.bridge
    return (
        f"[pipeline-decode-profile] call#{number} m={call.rows} {shape} bridge={bridge.value} "
        f"host_bridge_bytes={call.host_bridge_bytes} bridge_us={micros(timing.bridge_ns)} "
        f"host_copy_us={micros(timing.host_copy_ns)} "
        f"device_copy_us={micros(timing.device_copy_ns)} "
        f"stage_us={[micros(ns) for ns in call.stage_ns]} logits_us={micros(call.logits_ns)} "
        f"total_us={micros(call.total_ns)}"
    )
