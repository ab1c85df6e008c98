"""Read rows of a matrix out of oneDNN's blocked layout, so that tied embeddings need no copy.

Element (n, k) lies at offset f(n) + g(k); f repeats, shifted, every few rows. Both are learnt by
reordering matrices of known entries, never assumed, and are checked against the real matrix.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_PROBE_ROWS = 192  # three blocks of 64 rows, and a multiple of every smaller period
_PERIODS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96)
_DIGIT_BITS = 7  # entries below 128 are exact in every floating-point dtype


@dataclass(frozen=True, eq=False)
class RowReader:
    """Look-up of rows in the memory of `blocked`, which it keeps alive."""

    blocked: Tensor
    memory: Tensor  # flat view of the blocked matrix
    period: int
    period_stride: int
    row_offsets: Tensor  # int64 [period]: f of the first rows
    column_offsets: Tensor  # int64 [K]: g

    @property
    def nbytes(self) -> int:
        """Bytes of the offset tables."""
        return self.row_offsets.nbytes + self.column_offsets.nbytes

    def rows(self, ids: Tensor) -> Tensor:
        """ids int64 [T] -> [T, K], a copy. Raises `IndexError` for an id that is no row."""
        count = self.blocked.shape[0]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
            raise IndexError(f"row ids are {ids.tolist()}; expected 0 to {count - 1}")
        starts = self.row_offsets[ids % self.period]
        starts += (ids // self.period) * self.period_stride
        return self.memory.take(starts.unsqueeze(1) + self.column_offsets)

    @staticmethod
    def learn(
        blocked: Tensor, weight: Tensor, reorder: Callable[[Tensor], Tensor]
    ) -> RowReader | None:
        """A reader of `blocked`, which `reorder` made from `weight`; None if rows read wrong."""
        n, k = weight.shape
        offsets = _probe_offsets(min(n, _PROBE_ROWS), k, weight.dtype, reorder)
        if offsets is None:
            return None
        f, g = offsets[:, 0], offsets[0] - offsets[0, 0]
        if not torch.equal(offsets, f[:, None] + g):
            return None
        period, stride = _period(f)
        reader = RowReader(blocked, _flat_memory(blocked), period, stride, f[:period].clone(), g)
        sample = torch.linspace(0, n - 1, min(n, 64), dtype=torch.float64).long()
        last = reader.row_offsets.max() + (n - 1) // period * stride + g.max()
        if last >= reader.memory.numel() or not torch.equal(
            reader.rows(sample).view(torch.uint8), weight[sample].view(torch.uint8)
        ):
            return None
        return reader


def _probe_offsets(
    n: int, k: int, dtype: torch.dtype, reorder: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """Offsets int64 [n, k] of the elements of a blocked [n, k] matrix."""
    # Index + 1 of each element in digits of 7 bits, one reordered matrix a digit; 0 is padding.
    index = torch.arange(1, n * k + 1)
    found: Tensor | None = None
    for shift in range(0, (n * k).bit_length(), _DIGIT_BITS):
        digit = (index >> shift) & ((1 << _DIGIT_BITS) - 1)
        matrix = reorder(digit.to(dtype).view(n, k))
        plane = _flat_memory(matrix).long() << shift
        if found is not None and found.shape != plane.shape:
            return None
        found = plane if found is None else found + plane
    assert found is not None
    where = found.nonzero().squeeze(1)
    if where.numel() != n * k:
        return None
    offsets = torch.full((n * k,), -1)
    offsets[found[where] - 1] = where
    return None if bool((offsets < 0).any()) else offsets.view(n, k)


def _period(f: Tensor) -> tuple[int, int]:
    """The shortest period of the row offsets `f`, and the distance of one period to the next."""
    for period in _PERIODS:
        if period >= f.numel():
            break
        steps = f[period:] - f[:-period]
        if bool((steps == steps[0]).all()):
            return period, int(steps[0])
    return f.numel(), 0


def _flat_memory(blocked: Tensor) -> Tensor:
    """The memory of an opaque oneDNN tensor as a flat tensor; valid while `blocked` lives."""
    nbytes = torch.ops.mkldnn._nbytes(blocked)
    address = torch.ops.mkldnn.data_ptr(blocked)
    return torch.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=blocked.dtype)
