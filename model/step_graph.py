"""Decode steps captured once and run again: a CUDA graph for each bucket of batch sizes.

A step of a small batch is hundreds of short kernels, whose launches take longer than they do. A
graph launches them all at once, but always on the same memory and for the same number of rows. So
a batch is copied into static inputs, padded to its bucket with rows that bring a query to an empty
sequence and write nowhere, and the result is copied out. Kernels whose rows do not depend on each
other give the same bits as without a graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import workspace
from kernels.errors import UnsupportedError
from model.paged_batch import Packing, PagedBatch

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Rows that steps are captured for; a larger batch runs without a graph."""

Step = Callable[[Tensor, PagedBatch], Tensor]
"""Token ids int64 [B] or a residual stream float32 [B, H] -> the residual stream [B, H]."""

Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Records what a function does: the tensor that it returns, and what fills that tensor again."""


class StepGraphs:
    """The captured steps of one stage, each made when a batch first needs it.

    Args:
        capture: how a step is captured.
        max_blocks: most blocks of one sequence.
        device: where the step runs.
    """

    def __init__(self, capture: Capture, max_blocks: int, device: torch.device) -> None:
        self._capture = capture
        self._max_blocks = max_blocks
        self._device = device
        self._graphs: dict[tuple[int, torch.dtype], StepGraph] = {}

    @property
    def captured(self) -> list[int]:
        """Buckets that have a graph."""
        return sorted({rows for rows, _ in self._graphs})

    def takes(self, rows: int) -> bool:
        """Whether there is a bucket for so many rows."""
        return rows <= BUCKETS[-1]

    def run(self, step: Step, x: Tensor, batch: PagedBatch) -> Tensor:
        """`step` on token ids (of the host) or a residual stream (of the device); a new tensor.

        step: always the same; it must not wait for the device. batch: on the host, one token a
        sequence. Raises `UnsupportedError` if the step cannot be
        captured, and what the step raises.
        """
        bucket = next(rows for rows in BUCKETS if rows >= batch.rows)
        graph = self._graphs.get((bucket, x.dtype))
        if graph is None:
            graph = StepGraph(bucket, x, self._max_blocks, self._device)
            graph.fill(x, batch)
            graph.record(step, self._capture)
            self._graphs[bucket, x.dtype] = graph  # only one that was recorded
        else:
            graph.fill(x, batch)
        return graph.replay(batch.rows)


class StepGraph:
    """The step of `rows` rows over static inputs, those of `x`'s kind."""

    def __init__(self, rows: int, x: Tensor, max_blocks: int, device: torch.device) -> None:
        self._rows = rows
        self._device = device
        per_row = torch.Size([rows])
        vectors = [torch.int64, torch.int64, torch.int64, torch.int32]
        if x.dtype == torch.int64:
            vectors.append(torch.int64)
        self._packing = Packing([(per_row, dtype) for dtype in vectors])
        self._buffer = self._packing.buffer(device)
        positions, token_kv_len, slot_mapping, kv_len, *ids = self._packing.views(self._buffer)
        self._x = ids[0] if ids else torch.zeros(rows, x.shape[1], device=device)
        self._batch = PagedBatch(
            query_start=torch.arange(rows + 1, dtype=torch.int32, device=device),
            kv_len=kv_len,
            block_table=torch.zeros(rows, max_blocks, dtype=torch.int32, device=device),
            positions=positions,
            token_kv_len=token_kv_len,
            slot_mapping=slot_mapping,
            max_queries=1,
        )

    def record(self, step: Step, capture: Capture) -> None:
        """Capture `step` on the static inputs, as they are filled."""
        self._result, self._replay = capture(lambda: step(self._x, self._batch))

    def fill(self, x: Tensor, batch: PagedBatch) -> None:
        """Copy a batch in; nothing waits for it. The padding sees nothing and writes nowhere."""
        rows = batch.rows
        # Not kept: the copy may still be read from it when the next batch comes.
        pinned = self._device.type == "cuda"
        staging = self._packing.buffer(torch.device("cpu"), pinned=pinned)
        views = self._packing.views(staging)
        values = [batch.positions, batch.token_kv_len, batch.slot_mapping, batch.kv_len]
        if x.dtype == torch.int64:
            values.append(x)
        else:
            self._x[:rows].copy_(x)
        for view, value, padding in zip(views, values, (0, 0, -1, 0, 0), strict=False):
            view[:rows] = value
            view[rows:] = padding
        self._buffer.copy_(staging, non_blocking=True)
        table = batch.block_table.pin_memory() if pinned else batch.block_table
        self._batch.block_table[:rows, : table.shape[1]].copy_(table, non_blocking=True)

    def replay(self, rows: int) -> Tensor:
        """Run the step; the first `rows` rows of its result, copied, as the next run overwrites."""
        self._replay()
        return self._result[:rows].clone()


class CudaCapture:
    """Captures functions in CUDA graphs that share one pool of memory.

    So they must run one after another, and a result must be taken before another graph runs.
    """

    # PyTorch synchronises when a capture begins, which another thread's capture would not survive.
    _one_at_a_time = threading.Lock()

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """See `Capture`. Runs `step` once before, so that its kernels are compiled."""
        with self._one_at_a_time, torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)
                self._pool = torch.cuda.graph_pool_handle()
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                step()
            current.wait_stream(self._stream)
            return self._captured(step)

    def _captured(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                workspace.held() as buffers,
                torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",  # other stages go on working
                ),
            ):
                result = step()
        except Exception as error:
            raise UnsupportedError(
                f"the decode step could not be captured in a CUDA graph ({error}); "
                "cuda_graphs=False runs it without"
            ) from error

        def replay(kept: list[Tensor] = buffers) -> None:
            graph.replay()

        return result, replay
