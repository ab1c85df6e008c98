"""By how much the ranks' clocks differ, so that one timeline can show all stages."""

from __future__ import annotations

import time

import torch

from pipeline.distributed.channels import Channels
from pipeline.distributed.world import World

_TURNS = 8


def measure_offsets(world: World, channels: Channels) -> list[int]:
    """Nanoseconds that each rank's `time.perf_counter_ns` is ahead of the driver's.

    All ranks call this; only the driver learns it. Of several questions, the one that was answered
    soonest says most: the answer was given halfway, give or take half of that time (as in NTP).
    """
    offsets = [0] * world.size
    if not world.drives:
        for _ in range(_TURNS):
            channels.orders.recv([torch.empty(1, dtype=torch.int64)], 0, 0).wait()
            now = torch.tensor([time.perf_counter_ns()])
            channels.answers.send([now], 0, 0).wait()
        return offsets
    for rank in range(1, world.size):
        offsets[rank] = min(_ask(channels, rank) for _ in range(_TURNS))[1]
    return offsets


def _ask(channels: Channels, rank: int) -> tuple[int, int]:
    """How long an answer took, and how far ahead it was."""
    told = torch.empty(1, dtype=torch.int64)
    start = time.perf_counter_ns()
    channels.orders.send([torch.zeros(1, dtype=torch.int64)], rank, 0).wait()
    channels.answers.recv([told], rank, 0).wait()
    end = time.perf_counter_ns()
    return end - start, int(told) - (start + end) // 2
