"""Registry entry of `linear`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kernels.case_inputs import DTYPES, Case, Inputs, Random
from kernels.linear import linear, pack
from kernels.model_shapes import LLAMA_1B, LLAMA_8B, MODELS, QWEN2_7B, ModelShape
from kernels.op import Op


def _case(
    t: int, n: int, k: int, dtype: str, bias: bool, residual: bool, bench: bool = False
) -> Case:
    name = f"T{t}-N{n}-K{k}-{dtype}{'-bias' * bias}{'-residual' * residual}"
    params = {"t": t, "n": n, "k": k, "dtype": dtype, "bias": bias, "residual": residual}
    return Case(name, params, bench)


CASES = (
    *(
        case
        for dtype in ("fp32", "bf16", "fp16")
        for case in (
            _case(1, 64, 64, dtype, False, False),
            _case(1, 33, 129, dtype, True, True),
            _case(2, 1, 5, dtype, False, True),
            _case(7, 130, 97, dtype, True, False),
            _case(33, 257, 200, dtype, False, True),
            _case(70, 96, 512, dtype, True, True),
        )
    ),
    *(
        _case(t, 8192, 2048, dtype, False, False, bench=True)
        for dtype in ("fp32", "bf16")
        for t in (1, 16, 128)
    ),
)


def _aot(model: ModelShape, dtype: str) -> list[Case]:
    """Both projections of a model that are no MLP, for 1, 32 and 64 rows."""
    attended, hidden = model.heads * model.head_dim, model.hidden_size
    return [
        case
        for t in (1, 32, 64)
        for case in (
            _case(t, model.qkv_rows, hidden, dtype, model.qkv_bias, False),
            _case(t, hidden, attended, dtype, False, True),
        )
    ]


AOT = tuple(
    {
        case.name: case
        for model, dtype in (
            *((model, "bf16") for model in MODELS),
            (QWEN2_7B, "fp16"),
            (LLAMA_8B, "fp16"),
            (LLAMA_1B, "fp32"),
            (QWEN2_7B, "fp32"),
        )
        for case in _aot(model, dtype)
    }.values()
)


def make_inputs(case: Case, device: str = "cpu", draw: int = 0) -> Inputs:
    """Weights of about the size that keeps y near one."""
    p, random = case.params, Random(case, device, draw)
    dtype = DTYPES[p["dtype"]]
    return {
        "x": random.normal(p["t"], p["k"], dtype=dtype),
        "weight": random.normal(p["n"], p["k"], dtype=dtype, std=p["k"] ** -0.5),
        "bias": random.normal(p["n"], dtype=dtype) if p["bias"] else None,
        "residual": random.normal(p["t"], p["n"]) if p["residual"] else None,
    }


def _bind(inputs: Inputs, impl: str) -> Callable[[], Any]:
    packed = pack(inputs["weight"], inputs["bias"], impl=impl)
    return lambda: linear(inputs["x"], packed, residual=inputs["residual"])


def _collect(inputs: Inputs, raw: Any) -> dict[str, Tensor]:
    return {"y": raw}


def _flops(case: Case) -> int:
    p = case.params
    extra: int = p["t"] * p["n"] * (p["bias"] + p["residual"])
    return 2 * int(p["t"]) * int(p["n"]) * int(p["k"]) + extra


def _bytes(case: Case) -> int:
    p = case.params
    t, n, k, size = p["t"], p["n"], p["k"], DTYPES[p["dtype"]].itemsize
    out = 8 if p["residual"] else size  # with a residual: it is read, the sum written, in float32
    return int(size * (t * k + n * k + n * p["bias"]) + t * n * out)


LINEAR = Op(
    "linear",
    CASES,
    make_inputs,
    _bind,
    _collect,
    _flops,
    _bytes,
    aot=AOT,
)
