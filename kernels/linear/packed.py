"""Weights of a linear layer as an implementation keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class PackedWeight(Protocol):
    """A matrix [N, K] in the form that one implementation multiplies fastest with."""

    @property
    def kind(self) -> str:
        """Name of the form."""

    @property
    def rows_shared(self) -> bool:
        """Whether `rows` needs no second copy of the matrix."""

    @property
    def nbytes(self) -> int:
        """Bytes kept in memory, look-up tables and second copies included."""

    def matmul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, K] -> x W^T + bias [T, N]."""

    def rows(self, ids: Tensor) -> Tensor:
        """Rows `ids` int64 [T] of the matrix: [T, K], a copy."""


@dataclass(frozen=True, eq=False)
class PlainWeight:
    """The matrix as it came, multiplied by `F.linear`."""

    weight: Tensor
    kind: str = "plain"
    rows_shared: bool = True

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def matmul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, bias)

    def rows(self, ids: Tensor) -> Tensor:
        return self.weight.index_select(0, ids)


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A linear layer of `in_features` to `out_features`, packed for `impl`; see `linear.pack`."""

    impl: str
    weight: PackedWeight
    in_features: int
    out_features: int
    dtype: torch.dtype
    bias: Tensor | None = None

    @property
    def kind(self) -> str:
        """How the weights are kept: "plain", or "onednn" (blocked for oneDNN's kernels)."""
        return self.weight.kind

    @property
    def rows_shared(self) -> bool:
        """Whether `rows` reads the packed weights themselves, not a second copy of them."""
        return self.weight.rows_shared

    @property
    def nbytes(self) -> int:
        """Bytes of weights and bias in memory."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight matrix: ids int64 [T] -> [T, in_features], a copy.

        Raises `IndexError` for an id that is no row, `UnsupportedError` where the weights are kept
        in a form that only `pack(..., keep_rows=True)` makes readable.
        """
        return self.weight.rows(ids)
