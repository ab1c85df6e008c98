"""oneDNN matrices: weights reordered once into the blocked layout that its kernels read fastest.

The only module that touches torch's private `torch.ops.mkldnn`; `available` proves them first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.errors import UnsupportedError
from kernels.linear.blocked_rows import RowReader

# The batch size that weights are blocked for. 16 measured best for 1 to 128 rows, both dtypes.
_BATCH_HINT = 16
# oneDNN sums a float32 product over K in one chain, which at K = 2048 errs up to three times as
# much as torch's plain product with its several partial sums. Summing parts of at most so many
# columns errs about as much as that one. bfloat16 results are rounded far more coarsely and stay
# whole.
_COLUMNS_UP_TO_K = ((512, 32), (4096, 128))
_MOST_COLUMNS = 256
_DTYPES = (torch.bfloat16, torch.float32)


@functools.cache
def available(dtype: torch.dtype) -> bool:
    """Whether this torch and CPU can multiply `dtype` weights in oneDNN's blocked layout."""
    if dtype not in _DTYPES or not torch.backends.mkldnn.is_available():
        return False
    weight = torch.arange(15, dtype=dtype).view(5, 3)
    x = torch.arange(6, dtype=dtype).view(2, 3)
    try:
        y = _multiply(x, _reorder(weight), None)
    except (RuntimeError, AttributeError):  # no such operator, or this CPU lacks the dtype
        return False
    return torch.equal(y, x @ weight.T)  # small integers: exact in either dtype


@dataclass(frozen=True, eq=False)
class OneDnnWeight:
    """A matrix [N, K] in oneDNN's blocked layout, cut along K for float32."""

    parts: tuple[Tensor, ...]  # opaque: layout torch._mkldnn
    readers: tuple[RowReader, ...]  # one per part where rows are wanted, or none
    plain: Tensor | None  # [N, K], only where rows are wanted and the layout could not be read
    kind: str = "onednn"

    @property
    def rows_shared(self) -> bool:
        return self.plain is None

    @property
    def nbytes(self) -> int:
        nbytes: int = sum(torch.ops.mkldnn._nbytes(part) for part in self.parts)
        nbytes += sum(reader.nbytes for reader in self.readers)
        return nbytes + (0 if self.plain is None else self.plain.nbytes)

    def matmul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.shape[0]
        if rows == 0:
            return x.new_empty(0, self.parts[0].shape[0])
        if rows == 1:
            # A single row takes a matrix-vector kernel that sums in another order; as one of two
            # equal rows it gets the bits that it gets in any batch.
            x = x.expand(2, -1)
        pieces = x.split(self.parts[0].shape[1], dim=1)
        y = _multiply(pieces[0].contiguous(), self.parts[0], bias)
        for piece, part in zip(pieces[1:], self.parts[1:], strict=True):
            y += _multiply(piece.contiguous(), part, None)
        return y[:rows]

    def rows(self, ids: Tensor) -> Tensor:
        if self.readers:
            return torch.cat([reader.rows(ids) for reader in self.readers], dim=1)
        if self.plain is not None:
            return self.plain.index_select(0, ids)
        raise UnsupportedError(
            "PackedLinear.rows: these weights are blocked for oneDNN; pack(..., keep_rows=True) "
            "makes their rows readable"
        )


def pack(weight: Tensor, keep_rows: bool) -> OneDnnWeight:
    """Reorder weight [N, K]. With `keep_rows`, rows are read from the blocked matrix if a sample
    of them reads back bitwise; else the plain matrix is kept beside it."""
    columns = weight.shape[1] if weight.dtype != torch.float32 else _columns(weight.shape[1])
    parts: list[Tensor] = []
    readers: list[RowReader] = []
    for piece in weight.detach().split(columns, dim=1):
        piece = piece.contiguous()  # one copy at a time: all of them would be a second matrix
        parts.append(_reorder(piece))
        if keep_rows and (reader := RowReader.learn(parts[-1], piece, _reorder)) is not None:
            readers.append(reader)
    if keep_rows and len(readers) < len(parts):
        return OneDnnWeight(tuple(parts), (), weight)
    return OneDnnWeight(tuple(parts), tuple(readers), None)


def _columns(k: int) -> int:
    return next((columns for most, columns in _COLUMNS_UP_TO_K if k <= most), _MOST_COLUMNS)


def _reorder(weight: Tensor) -> Tensor:
    blocked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _BATCH_HINT)
    return blocked


def _multiply(x: Tensor, blocked: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "none", [], "")
    return y
