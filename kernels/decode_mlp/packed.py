"""Weights of a gated MLP as an implementation keeps them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.linear.packed import PackedLinear


@dataclass(frozen=True, eq=False)
class PackedMLP:
    """`gate_up` (hidden -> 2 * intermediate) and `down`; see `decode_mlp.pack`.

    In `gate_up` gate's rows come first or, `interleaved`, gate's and up's rows take turns.
    """

    impl: str
    gate_up: PackedLinear
    down: PackedLinear
    interleaved: bool = False

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.gate_up.in_features

    @property
    def intermediate_size(self) -> int:
        """Width between up and down."""
        return self.down.in_features

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.gate_up.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of weights in memory."""
        return self.gate_up.nbytes + self.down.nbytes
