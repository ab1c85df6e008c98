"""The few calls of torch.cuda that links are made of; tests put their own in its place."""

from __future__ import annotations

import torch


class CudaStreams:
    """Streams, events and memory of CUDA devices."""

    def are_peers(self, source: torch.device, target: torch.device) -> bool:
        """Whether one device can write to the other's memory; true of a device and itself."""
        return source == target or torch.cuda.can_device_access_peer(source, target)

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """A stream of the device other than the one its stage computes on."""
        return torch.cuda.Stream(device)

    def compute_stream(self, device: torch.device) -> torch.cuda.Stream:
        """The stream that the calling thread's work on the device goes to."""
        return torch.cuda.current_stream(device)

    def event(self) -> torch.cuda.Event:
        """An event with a time; who waits for it sleeps, as the core may be another stage's."""
        return torch.cuda.Event(enable_timing=True, blocking=True)

    def pinned(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """Page-locked host memory, [rows, width]."""
        return torch.empty(rows, width, dtype=dtype, pin_memory=True)

    def buffer(
        self, rows: int, width: int, dtype: torch.dtype, stream: torch.cuda.Stream
    ) -> torch.Tensor:
        """Memory of the stream's device, [rows, width]; to the allocator it is the stream's."""
        with torch.cuda.stream(stream):
            return torch.empty(rows, width, dtype=dtype, device=stream.device)

    def copy(
        self,
        into: torch.Tensor,
        rows: torch.Tensor,
        stream: torch.cuda.Stream,
        other: torch.cuda.Stream | None = None,
    ) -> None:
        """Queue a copy on `stream`; where it converts, it does so on the device it comes from.

        `other` is a stream of the receiving device. torch makes a copy between two devices wait
        for the current stream of both, and that of the receiving one should not be what a stage
        computes on.
        """
        with torch.cuda.stream(other), torch.cuda.stream(stream):
            into.copy_(rows, non_blocking=True)

    def widened(self, rows: torch.Tensor) -> torch.Tensor:
        """As float32; where that is a copy, the calling thread's stream makes it."""
        return rows.float()

    def keep(self, tensor: torch.Tensor, stream: torch.cuda.Stream) -> None:
        """Have the allocator wait for the stream before it gives the tensor's memory away."""
        tensor.record_stream(stream)
