"""Registry entry of `rms_norm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kernels.case_inputs import DTYPES, Case, Inputs, Random
from kernels.model_shapes import MODELS
from kernels.op import Op
from kernels.rms_norm import rms_norm


def _case(t: int, h: int, dtype: str, residual: bool, bench: bool = False) -> Case:
    name = f"T{t}-H{h}-{dtype}{'-residual' if residual else ''}"
    return Case(name, {"t": t, "h": h, "dtype": dtype, "residual": residual}, bench)


CASES = (
    *(_case(t, h, dtype, residual)
      for dtype in ("fp32", "bf16", "fp16")
      for t, h, residual in ((1, 64, False), (3, 97, True), (33, 200, True), (5, 2048, False))),
    *(_case(t, 2048, "bf16", True, bench=True) for t in (1, 16, 2048)),
)  # fmt: skip

AOT = (
    *(
        _case(1, hidden, dtype, False)
        for hidden in sorted({model.hidden_size for model in MODELS})
        for dtype in ("bf16", "fp16", "fp32")
    ),
    _case(1, 4096, "bf16", True),
)


def make_inputs(case: Case, device: str = "cpu", draw: int = 0) -> Inputs:
    """x and residual are the float32 stream; the weight and y have the case's dtype."""
    p, random = case.params, Random(case, device, draw)
    dtype = DTYPES[p["dtype"]]
    return {
        "x": random.normal(p["t"], p["h"], std=3.0),
        "weight": random.normal(p["h"], dtype=dtype) + 1,
        "residual": random.normal(p["t"], p["h"]) if p["residual"] else None,
        "out_dtype": dtype,
    }


def _bind(inputs: Inputs, impl: str) -> Callable[[], Any]:
    return lambda: rms_norm(**inputs, eps=1e-5, impl=impl)


def _collect(inputs: Inputs, raw: Any) -> dict[str, Tensor]:
    return {"y": raw} if inputs["residual"] is None else {"y": raw[0], "s": raw[1]}


def _flops(case: Case) -> int:
    per_element = 4 + case.params["residual"]
    return int(per_element * case.params["t"] * case.params["h"])


def _bytes(case: Case) -> int:
    p = case.params
    streams = 4 * (3 if p["residual"] else 1)  # x, residual and s in float32
    size = DTYPES[p["dtype"]].itemsize
    return int(p["t"] * p["h"] * (streams + size) + p["h"] * size)


RMS_NORM = Op("rms_norm", CASES, make_inputs, _bind, _collect, _flops, _bytes, aot=AOT)
