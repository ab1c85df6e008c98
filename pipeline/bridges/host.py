"""Host memory between two stages that compute on the CPU: a plain copy into the ring's slot."""

from __future__ import annotations

import time

import torch

from pipeline.bridges.link import NO_TIME, SLOTS, BridgeTiming

FIRST_ROWS = 64
"""Rows that a slot has room for at first; it grows when more come."""


class HostCopier:
    """Copies from the CPU to the CPU; done when the calls return.

    Args:
        hidden_size: width of a row.
        dtype: of the rows in the slots; float32 is read in place, another one is converted back.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype) -> None:
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._slots = [self._allocate(FIRST_ROWS) for _ in range(SLOTS)]

    def settle(self, slot: int) -> BridgeTiming:
        """Nothing is ever under way."""
        return NO_TIME

    def write(self, slot: int, hidden: torch.Tensor) -> BridgeTiming:
        """Copy float32 [rows, hidden] into a slot."""
        start = time.perf_counter_ns()
        rows = hidden.shape[0]
        if self._slots[slot].shape[0] < rows:
            self._slots[slot] = self._allocate(rows)
        into = self._slots[slot][:rows]
        copy_start = time.perf_counter_ns()
        into.copy_(hidden)
        end = time.perf_counter_ns()
        return BridgeTiming(end - start, host_copy_ns=end - copy_start)

    def read(self, slot: int, rows: int) -> tuple[torch.Tensor, BridgeTiming]:
        """A view of a slot's rows if it is float32, else a copy, [rows, hidden]."""
        start = time.perf_counter_ns()
        hidden = self._slots[slot][:rows].float()
        return hidden, BridgeTiming(time.perf_counter_ns() - start)

    def release(self, slot: int) -> None:
        """Reads on the CPU are done when the receiver says so."""

    def _allocate(self, rows: int) -> torch.Tensor:
        # A slot that grows inside inference mode must not become an inference tensor: those can
        # only be written to there.
        with torch.inference_mode(False):
            return torch.empty(rows, self._hidden_size, dtype=self._dtype)
