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
    """A matrix [N, K] in oneDNN's blocked layout."""

    blocked: Tensor  # opaque: layout torch._mkldnn
    reader: RowReader | None
    plain: Tensor | None  # [N, K], only where rows are wanted and the layout could not be read
    kind: str = "onednn"

    @property
    def rows_shared(self) -> bool:
        return self.plain is None

    @property
    def nbytes(self) -> int:
        nbytes: int = torch.ops.mkldnn._nbytes(self.blocked)
        for extra in (self.reader, self.plain):
            nbytes += 0 if extra is None else extra.nbytes
        return nbytes

    def matmul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[0] == 0:
            return x.new_empty(0, self.blocked.shape[0])
        if x.shape[0] == 1:
            # A single row takes a matrix-vector kernel that sums in another order; as one of two
            # equal rows it gets the bits that it gets in any batch.
            return _multiply(x.expand(2, -1).contiguous(), self.blocked, bias)[:1]
        return _multiply(x, self.blocked, bias)

    def rows(self, ids: Tensor) -> Tensor:
        if self.reader is not None:
            return self.reader.rows(ids)
        if self.plain is not None:
            return self.plain.index_select(0, ids)
        raise UnsupportedError(
            "PackedLinear.rows: these weights are blocked for oneDNN; pack(..., keep_rows=True) "
            "makes their rows readable"
        )


def pack(weight: Tensor, keep_rows: bool) -> OneDnnWeight:
    """Reorder weight [N, K]. With `keep_rows`, rows are read from the blocked matrix if a sample
    of them reads back bitwise; else the plain matrix is kept beside it."""
    weight = weight.detach().contiguous()
    blocked = _reorder(weight)
    if not keep_rows:
        return OneDnnWeight(blocked, None, None)
    reader = RowReader.learn(blocked, weight, _reorder)
    return OneDnnWeight(blocked, reader, weight if reader is None else None)


def _reorder(weight: Tensor) -> Tensor:
    blocked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _BATCH_HINT)
    return blocked


def _multiply(x: Tensor, blocked: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "none", [], "")
    return y
