"""Registry entries of `logits` and `greedy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kernels.case_inputs import DTYPES, Case, Inputs, Random
from kernels.linear import pack
from kernels.logits import greedy, logits
from kernels.model_shapes import LLAMA_1B, LLAMA_8B, MODELS
from kernels.op import Op


def _case(b: int, h: int, v: int, dtype: str, bench: bool = False) -> Case:
    return Case(f"B{b}-H{h}-V{v}-{dtype}", {"b": b, "h": h, "v": v, "dtype": dtype}, bench)


CASES = (
    *(
        _case(b, h, v, dtype)
        for dtype in ("fp32", "bf16", "fp16")
        for b, h, v in ((1, 64, 1000), (3, 97, 301), (17, 200, 515), (2, 128, 2))
    ),
    *(_case(b, 2048, 128256, "bf16", bench=True) for b in (1, 16)),
)

AOT = tuple(
    {
        case.name: case
        for b in (1, 32, 64)
        for model, dtype in (
            *((model, "bf16") for model in MODELS),
            (LLAMA_8B, "fp16"),
            (LLAMA_1B, "fp32"),
        )
        for case in (_case(b, model.hidden_size, model.vocab_size, dtype),)
    }.values()
)


def make_inputs(case: Case, device: str = "cpu", draw: int = 0) -> Inputs:
    """The float32 stream, and a head in the case's dtype."""
    p, random = case.params, Random(case, device, draw)
    return {
        "hidden": random.normal(p["b"], p["h"], std=3.0),
        "norm_weight": random.normal(p["h"]) + 1,
        "head": random.normal(p["v"], p["h"], dtype=DTYPES[p["dtype"]], std=p["h"] ** -0.5),
    }


def make_greedy_inputs(case: Case, device: str = "cpu", draw: int = 0) -> Inputs:
    """Each row has a clear winner that stands in the head twice: a tie.

    A winner's weights are zero but for one, so that no order of summing changes its logit.
    """
    inputs = make_inputs(case, device, draw)
    if device == "meta":
        return inputs
    b, v = case.params["b"], case.params["v"]
    hidden, head = inputs["hidden"], inputs["head"]
    for row in range(b):
        column = int((hidden[row] * inputs["norm_weight"]).abs().argmax())
        hidden[row, column] *= 2
        first = column % (v // 2)
        for winner in (first, v - 1 - first):
            head[winner] = 0
            head[winner, column] = 50 * float(hidden[row, column] * inputs["norm_weight"][column])
    return inputs


def _bind_with(op: Callable[..., Tensor]) -> Callable[[Inputs, str], Callable[[], Any]]:
    def bind(inputs: Inputs, impl: str) -> Callable[[], Any]:
        head = pack(inputs["head"], impl=impl)
        return lambda: op(inputs["hidden"], inputs["norm_weight"], 1e-5, head, impl=impl)

    return bind


def _flops(case: Case) -> int:
    b, h, v = (int(case.params[name]) for name in "bhv")
    return b * (2 * h * v + 4 * h)


def _bytes(case: Case) -> int:
    b, h, v = (int(case.params[name]) for name in "bhv")
    return h * v * DTYPES[case.params["dtype"]].itemsize + 4 * (b * h + h)


def _logits_bytes(case: Case) -> int:
    return _bytes(case) + 4 * int(case.params["b"]) * int(case.params["v"])


def _greedy_bytes(case: Case) -> int:
    return _bytes(case) + 8 * int(case.params["b"])


LOGITS = Op(
    "logits",
    CASES,
    make_inputs,
    _bind_with(logits),
    lambda inputs, raw: {"logits": raw},
    _flops,
    _logits_bytes,
    aot=AOT,
)
GREEDY = Op(
    "greedy",
    CASES,
    make_greedy_inputs,
    _bind_with(greedy),
    lambda inputs, raw: {"token": raw},
    _flops,
    _greedy_bytes,
    aot=AOT,
)
