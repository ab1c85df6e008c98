"""The gated MLP of a decoder layer, norm and residual included (SwiGLU, Shazeer, 2020,
https://arxiv.org/abs/2002.05202), for the few rows of a decode step."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.decode_mlp.packed import PackedMLP
from kernels.dispatch import implementation, implementation_module
from kernels.linear import pack as pack_linear
from kernels.validation import require

__all__ = ["PackedMLP", "decode_mlp", "pack"]


def pack(gate_up: Tensor, down: Tensor, *, impl: str) -> PackedMLP:
    """Pack gate_up [2I, H], gate's rows first, and down [H, I] for `impl`.

    Raises `InvalidInputError` for other shapes or unequal dtypes.
    """
    op = "decode_mlp.pack"
    ok = gate_up.dim() == 2 and gate_up.shape[0] % 2 == 0
    require(ok, op, "gate_up", gate_up, "[2 * intermediate, hidden]")
    expected = (gate_up.shape[1], gate_up.shape[0] // 2)
    ok = down.shape == expected and down.dtype == gate_up.dtype
    require(ok, op, "down", down, f"{gate_up.dtype} of shape {list(expected)}")
    implementation_module("decode_mlp", impl)  # an `impl` that is not there is an error
    return PackedMLP(impl, pack_linear(gate_up, impl=impl), pack_linear(down, impl=impl))


def decode_mlp(x: Tensor, norm_weight: Tensor, eps: float, mlp: PackedMLP, *, impl: str) -> Tensor:
    """x [B, H] float32 -> x + down(silu(gate) * up), gate and up of rms_norm(x): float32, new.

    norm_weight [H]. Between the operations values are rounded to the weights' dtype. "cpu" and
    "reference" take any B. Raises `InvalidInputError` for shapes, dtypes or an `impl` that do not
    fit the packed weights.
    """
    op, hidden = "decode_mlp", mlp.hidden_size
    if x.dim() != 2 or x.shape[1] != hidden or x.dtype not in (torch.float32, torch.float64):
        require(False, op, "x", x, f"float32 of shape [B, {hidden}]")
    if norm_weight.shape != (hidden,):
        require(False, op, "norm_weight", norm_weight, f"shape [{hidden}]")
    require(mlp.impl == impl, op, "impl", impl, f"{mlp.impl!r}, which packed the weights")
    out: Tensor = implementation(op, impl)(x, norm_weight, eps, mlp)
    return out
