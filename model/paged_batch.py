"""Where the tokens of a call go, and how the host tells a device of it in one copy."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

_ALIGNMENT = 16  # bytes; kernels are compiled apart for pointers that are not so aligned


@dataclass(frozen=True)
class PagedBatch:
    """Where the tokens of one call go, as the kernels want it.

    B sequences bring T tokens, concatenated in the order of the call.
    """

    query_start: torch.Tensor  # int32 [B+1], first token of each sequence, then T
    kv_len: torch.Tensor  # int32 [B], cached tokens including those of this call
    block_table: torch.Tensor  # int32 [B, max_blocks], entries past a row's length are arbitrary
    positions: torch.Tensor  # int64 [T], position of each token in its sequence
    token_kv_len: torch.Tensor  # int64 [T], `kv_len` of each token's sequence
    slot_mapping: torch.Tensor  # int64 [T], block * block_size + offset
    max_queries: int  # most tokens of one sequence

    @property
    def rows(self) -> int:
        """B, the number of sequences."""
        return self.kv_len.shape[0]

    def to(self, device: torch.device) -> PagedBatch:
        """The same on `device`, from the host: one copy, and nothing waits for it."""
        if device.type == "cpu":
            return self
        names = [field.name for field in fields(self) if field.name != "max_queries"]
        parts = [getattr(self, name) for name in names]
        there = dict(zip(names, copied(parts, device), strict=True))
        return PagedBatch(**there, max_queries=self.max_queries)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on `device`; nothing waits for its copy from the host."""
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Packing:
    """Several tensors side by side in one buffer of bytes, so that they go over in one copy."""

    def __init__(self, shapes: list[tuple[torch.Size, torch.dtype]]) -> None:
        self._shapes = shapes
        self._offsets = []
        self.nbytes = 0
        for shape, dtype in shapes:
            self._offsets.append(self.nbytes)
            size = shape.numel() * dtype.itemsize
            self.nbytes += -(-size // _ALIGNMENT) * _ALIGNMENT

    @classmethod
    def of(cls, tensors: list[torch.Tensor]) -> Packing:
        """A packing for tensors like these."""
        return cls([(tensor.shape, tensor.dtype) for tensor in tensors])

    def buffer(self, device: torch.device, *, pinned: bool = False) -> torch.Tensor:
        """An uninitialised buffer."""
        return torch.empty(self.nbytes, dtype=torch.uint8, device=device, pin_memory=pinned)

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The tensors that lie in `buffer`."""
        return [
            buffer[offset : offset + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for offset, (shape, dtype) in zip(self._offsets, self._shapes, strict=True)
        ]


def copied(tensors: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Tensors of the host on a CUDA device, in one copy that nothing waits for."""
    packing = Packing.of(tensors)
    staging = packing.buffer(torch.device("cpu"), pinned=True)
    for view, tensor in zip(packing.views(staging), tensors, strict=True):
        view.copy_(tensor)
    return packing.views(staging.to(device, non_blocking=True))
