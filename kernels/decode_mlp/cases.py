"""Registry entry of `decode_mlp`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kernels.case_inputs import DTYPES, Case, Inputs, Random
from kernels.decode_mlp import decode_mlp, pack
from kernels.model_shapes import LLAMA_1B, LLAMA_8B, MODELS
from kernels.op import Op


def _case(b: int, h: int, i: int, dtype: str, bench: bool = False, gpu: bool = False) -> Case:
    return Case(f"B{b}-H{h}-I{i}-{dtype}", {"b": b, "h": h, "i": i, "dtype": dtype}, bench, gpu)


CASES = (
    *(
        _case(b, h, i, dtype)
        for dtype in ("fp32", "bf16", "fp16")
        for b, h, i in ((1, 64, 176), (3, 97, 130), (16, 200, 33), (2, 128, 512))
    ),
    *(_case(b, 2048, 8192, "bf16", bench=True) for b in (1, 4, 16, 32)),
    *(_case(b, 4096, 14336, "bf16", bench=True, gpu=True) for b in (1, 4, 16)),
)

AOT = tuple(
    {
        case.name: case
        for b in (1, 32, 64, 128)
        for model, dtype in (
            *((model, "bf16") for model in MODELS),
            (LLAMA_8B, "fp16"),
            (LLAMA_1B, "fp32"),
        )
        for case in (_case(b, model.hidden_size, model.intermediate_size, dtype),)
    }.values()
)


def make_inputs(case: Case, device: str = "cpu", draw: int = 0) -> Inputs:
    """x is the float32 stream; the weights have the case's dtype."""
    p, random = case.params, Random(case, device, draw)
    h, i, dtype = p["h"], p["i"], DTYPES[p["dtype"]]
    return {
        "x": random.normal(p["b"], h),
        "norm_weight": random.normal(h) + 1,
        "gate_up": random.normal(2 * i, h, dtype=dtype, std=h**-0.5),
        "down": random.normal(h, i, dtype=dtype, std=i**-0.5),
    }


def _bind(inputs: Inputs, impl: str) -> Callable[[], Any]:
    mlp = pack(inputs["gate_up"], inputs["down"], impl=impl)
    return lambda: decode_mlp(inputs["x"], inputs["norm_weight"], 1e-5, mlp, impl=impl)


def _collect(inputs: Inputs, raw: Any) -> dict[str, Tensor]:
    return {"out": raw}


def _flops(case: Case) -> int:
    b, h, i = (int(case.params[name]) for name in "bhi")
    return b * (6 * h * i + 5 * h + 4 * i)


def _bytes(case: Case) -> int:
    b, h, i = (int(case.params[name]) for name in "bhi")
    return 3 * h * i * DTYPES[case.params["dtype"]].itemsize + 8 * b * h + 4 * h


DECODE_MLP = Op(
    "decode_mlp",
    CASES,
    make_inputs,
    _bind,
    _collect,
    _flops,
    _bytes,
    aot=AOT,
)
