"""Bad arguments of the public functions are named, with what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels import KVLayout, attention, decode_mlp, linear, logits, rms_norm, rope_append
from kernels.errors import InvalidInputError

ONES = torch.ones


def call_attention(**changed: Any) -> None:
    arguments: dict[str, Any] = {
        "q": ONES(3, 4, 8),
        "pool": KVLayout("fp32", 4, 2, 8).allocate(2),
        "query_start": torch.tensor([0, 1, 3], dtype=torch.int32),
        "kv_len": torch.tensor([3, 2], dtype=torch.int32),
        "block_table": torch.zeros(2, 1, dtype=torch.int32),
    }
    attention.attention(**{**arguments, **changed}, impl="cpu")


def call_rope_append(**changed: Any) -> None:
    arguments: dict[str, Any] = {
        "q": ONES(3, 4, 8),
        "k": ONES(3, 2, 8),
        "v": ONES(3, 2, 8),
        "cos": ONES(3, 4),
        "sin": ONES(3, 4),
        "pool": KVLayout("fp32", 4, 2, 8).allocate(2),
        "slot_mapping": torch.arange(3),
    }
    rope_append.rope_append(**{**arguments, **changed}, impl="cpu")


def call_linear(**changed: Any) -> None:
    packed = linear.pack(ONES(5, 8), impl="cpu")
    linear.linear(**{"x": ONES(3, 8), "packed": packed, **changed})


def call_pack(**changed: Any) -> None:
    linear.pack(**{"weight": ONES(5, 8), "bias": ONES(5), "impl": "cpu", **changed})


def call_rms_norm(**changed: Any) -> None:
    rms_norm.rms_norm(**{"x": ONES(3, 8), "weight": ONES(8), "eps": 1e-5, "impl": "cpu", **changed})


def call_pack_mlp(**changed: Any) -> None:
    decode_mlp.pack(**{"gate_up": ONES(10, 8), "down": ONES(8, 5), "impl": "cpu", **changed})


def call_decode_mlp(**changed: Any) -> None:
    mlp = decode_mlp.pack(ONES(10, 8), ONES(8, 5), impl="cpu")
    arguments = {"x": ONES(3, 8), "norm_weight": ONES(8), "eps": 1e-5, "mlp": mlp, "impl": "cpu"}
    decode_mlp.decode_mlp(**{**arguments, **changed})


def call_logits(**changed: Any) -> None:
    head = linear.pack(ONES(5, 8), impl="cpu")
    arguments = {
        "hidden": ONES(3, 8),
        "norm_weight": ONES(8),
        "eps": 1e-5,
        "head": head,
        "impl": "cpu",
    }
    logits.logits(**{**arguments, **changed})
    logits.greedy(**{**arguments, **changed})


@pytest.mark.parametrize(
    ("call", "changed", "message"),
    [
        (
            call_attention,
            {"q": ONES(3, 4, 9)},
            r"attention: q is .*\[3, 4, 9\]; expected \[T, a m",
        ),
        (call_attention, {"q": ONES(3, 3, 8)}, r"q is .*\[3, 3, 8\]; expected .*multiple of 2"),
        (call_attention, {"kv_len": torch.tensor([3, 2])}, r"kv_len is torch.int64 .*torch.int32"),
        (call_attention, {"query_start": torch.zeros(2).int()}, r"query_start is .* shape \[3\]"),
        (call_attention, {"block_table": torch.zeros(1, 1).int()}, r"block_table is .*\[2, blocks"),
        (call_attention, {"window": 0}, r"window is 0; expected None or at least 1"),
        (call_attention, {"softcap": 0.0}, r"softcap is 0.0; expected None or above 0"),
        (call_rope_append, {"q": ONES(3, 4)}, r"rope_append: q is .*; expected \[T, a multiple of"),
        (call_rope_append, {"k": ONES(3, 4, 8)}, r"k is .*; expected shape \[3, 2, 8\]"),
        (call_rope_append, {"v": ONES(2, 2, 8)}, r"v is .*; expected shape \[3, 2, 8\]"),
        (call_rope_append, {"cos": ONES(3, 8)}, r"cos is .*; expected shape \[3, 4\]"),
        (call_rope_append, {"sin": ONES(1, 4)}, r"sin is .*; expected shape \[3, 4\]"),
        (call_rope_append, {"slot_mapping": ONES(3)}, r"slot_mapping is torch.float32 .*int64"),
        (call_rope_append, {"q_norm": ONES(4)}, r"q_norm is .*; expected shape \[8\]"),
        (call_rope_append, {"k_norm": ONES(16)}, r"k_norm is .*; expected shape \[8\]"),
        (call_linear, {"x": ONES(3, 9)}, r"linear: x is .*; expected torch.float32 .*\[T, 8\]"),
        (
            call_linear,
            {"x": ONES(3, 8).bfloat16()},
            r"x is torch.bfloat16 .*expected torch.float",
        ),
        (call_linear, {"x": ONES(8)}, r"x is .*shape \[8\]; expected"),
        (call_linear, {"residual": ONES(3, 8)}, r"residual is .*; expected float32 .*\[3, 5\]"),
        (call_linear, {"residual": ONES(3, 5).half()}, r"residual is torch.float16 .*float32"),
        (call_pack, {"weight": ONES(5)}, r"linear.pack: weight is .*; expected a matrix \[N, K\]"),
        (call_pack, {"weight": ONES(5, 8).int()}, r"weight is torch.int32 .*floating-point"),
        (call_pack, {"bias": ONES(8)}, r"bias is .*; expected torch.float32 of shape \[5\]"),
        (call_pack, {"impl": "blas"}, r"impl is 'blas'; expected one of"),
        (call_rms_norm, {"x": ONES(8)}, r"rms_norm: x is .*; expected a matrix \[T, H\]"),
        (call_rms_norm, {"weight": ONES(4)}, r"weight is .*; expected shape \[8\]"),
        (call_rms_norm, {"residual": ONES(1, 8)}, r"residual is .*; expected shape \[3, 8\]"),
        (call_pack_mlp, {"gate_up": ONES(9, 8)}, r"gate_up is .*; expected \[2 \* intermediate"),
        (call_pack_mlp, {"down": ONES(5, 8)}, r"down is .*; expected torch.float32 .*\[8, 5\]"),
        (call_decode_mlp, {"x": ONES(3, 8).half()}, r"decode_mlp: x is torch.float16 .*float32"),
        (call_decode_mlp, {"norm_weight": ONES(5)}, r"norm_weight is .*; expected shape \[8\]"),
        (call_decode_mlp, {"impl": "reference"}, r"impl is 'reference'; expected 'cpu', which"),
        (call_logits, {"hidden": ONES(3, 5)}, r"logits: hidden is .*; expected shape \[B, 8\]"),
        (call_logits, {"norm_weight": ONES(5)}, r"norm_weight is .*; expected shape \[8\]"),
        (call_logits, {"impl": "reference"}, r"impl is 'reference'; expected 'cpu', which"),
    ],
)
def test_bad_arguments(call: Callable[..., None], changed: dict[str, Any], message: str) -> None:
    call()
    with pytest.raises(InvalidInputError, match=message):
        call(**changed)


def test_an_odd_head_dim_cannot_rotate() -> None:
    pool = KVLayout("fp32", 4, 1, 7).allocate(1)
    heads, table = ONES(1, 1, 7), ONES(1, 3)
    slots = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InvalidInputError, match=r"head_dim is 7; expected an even number"):
        rope_append.rope_append(heads, heads, heads, table, table, pool, slots, impl="cpu")
