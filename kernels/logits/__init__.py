"""The end of a model: final norm and lm_head, to logits or to the greedy choice of token."""

from __future__ import annotations

from torch import Tensor

from kernels.dispatch import implementation
from kernels.linear.packed import PackedLinear
from kernels.validation import require

__all__ = ["greedy", "logits"]


def logits(
    hidden: Tensor, norm_weight: Tensor, eps: float, head: PackedLinear, *, impl: str
) -> Tensor:
    """hidden [B, H] float32 -> logits [B, V] float32 of rms_norm(hidden) through `head`.

    norm_weight [H]; the norm is rounded to the head's dtype before the multiplication.
    Raises `InvalidInputError` for shapes, or an `impl` that did not pack `head`.
    """
    _validate("logits", hidden, norm_weight, head, impl)
    out: Tensor = implementation("logits", impl)(hidden, norm_weight, eps, head)
    return out


def greedy(
    hidden: Tensor, norm_weight: Tensor, eps: float, head: PackedLinear, *, impl: str
) -> Tensor:
    """Arguments as `logits` -> the token of the highest logit, int64 [B]; ties: the lowest id.

    A row with a NaN among its logits gets token 0.
    """
    _validate("greedy", hidden, norm_weight, head, impl)
    out: Tensor = implementation("greedy", impl)(hidden, norm_weight, eps, head)
    return out


def _validate(op: str, hidden: Tensor, norm_weight: Tensor, head: PackedLinear, impl: str) -> None:
    if hidden.dim() != 2 or hidden.shape[1] != head.in_features:
        require(False, op, "hidden", hidden, f"shape [B, {head.in_features}]")
    if norm_weight.shape != (head.in_features,):
        require(False, op, "norm_weight", norm_weight, f"shape [{head.in_features}]")
    require(head.impl == impl, op, "impl", impl, f"{head.impl!r}, which packed the head")
