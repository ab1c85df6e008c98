"""The gated MLP of a decoder layer, norm and residual included (SwiGLU, Shazeer, 2020,
https://arxiv.org/abs/2002.05202), for the few rows of a decode step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.decode_mlp.packed import PackedMLP
from kernels.dispatch import implementation, implementation_module
from kernels.linear import PackedLinear
from kernels.linear import pack as pack_linear
from kernels.validation import require

__all__ = ["PackedMLP", "decode_mlp", "pack"]


Source = Tensor | Callable[[], Tensor]


def pack(gate_up: Source, down: Source, *, impl: str) -> PackedMLP:
    """Pack gate_up [2I, H], gate's rows first, and down [H, I] for `impl`.

    A function in a tensor's place is called when its turn comes and what it returns is let go once
    packed, so that one of the two is in memory unpacked, not both. Raises `InvalidInputError` for
    other shapes or unequal dtypes.
    """
    op = "decode_mlp.pack"
    module = implementation_module("decode_mlp", impl)  # an `impl` not there is an error
    # An implementation whose kernel wants another order of rows says so by having this function.
    reorder = getattr(module, "interleave", None)

    def packed_gate_up(weight: Tensor) -> PackedLinear:
        ok = weight.dim() == 2 and weight.shape[0] % 2 == 0
        require(ok, op, "gate_up", weight, "[2 * intermediate, hidden]")
        return pack_linear(weight if reorder is None else reorder(weight), impl=impl)

    def packed_down(weight: Tensor, first: PackedLinear) -> PackedLinear:
        expected = (first.in_features, first.out_features // 2)
        ok = weight.shape == expected and weight.dtype == first.dtype
        require(ok, op, "down", weight, f"{first.dtype} of shape {list(expected)}")
        return pack_linear(weight, impl=impl)

    first = packed_gate_up(_read(gate_up))
    second = packed_down(_read(down), first)
    return PackedMLP(impl, first, second, interleaved=reorder is not None)


def _read(source: Source) -> Tensor:
    return source if isinstance(source, Tensor) else source()


def decode_mlp(x: Tensor, norm_weight: Tensor, eps: float, mlp: PackedMLP, *, impl: str) -> Tensor:
    """x [B, H] float32 -> x + down(silu(gate) * up), gate and up of rms_norm(x): float32, new.

    norm_weight [H]. silu(gate) * up, and what down gives, are rounded to the weights' dtype. So are
    the norm, gate and up before them, and silu(gate) of "cpu"; but "triton" keeps gate and up of up
    to 64 rows in float32 until their product and, unless the weights are float16, rounds
    x * norm_weight and divides by the root after the multiplication. Any B works; "triton" hands
    more than 64 rows to the library's GEMM. Raises `InvalidInputError` for shapes, dtypes or an
    `impl` that do not fit the packed weights.
    """
    op, hidden = "decode_mlp", mlp.hidden_size
    if x.dim() != 2 or x.shape[1] != hidden or x.dtype not in (torch.float32, torch.float64):
        require(False, op, "x", x, f"float32 of shape [B, {hidden}]")
    if norm_weight.shape != (hidden,):
        require(False, op, "norm_weight", norm_weight, f"shape [{hidden}]")
    require(mlp.impl == impl, op, "impl", impl, f"{mlp.impl!r}, which packed the weights")
    out: Tensor = implementation(op, impl)(x, norm_weight, eps, mlp)
    return out
