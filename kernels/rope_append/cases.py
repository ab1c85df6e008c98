"""Registry entry of `rope_append`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.case_inputs import DTYPES, Case, Inputs, Random, paged_cache, stored_tokens
from kernels.layout import KVLayout
from kernels.model_shapes import LLAMA_1B, LLAMA_8B, MODELS, QWEN3_8B
from kernels.op import Op
from kernels.rope_append import rope_append


def _case(
    t: int,
    heads: tuple[int, int, int],
    block_size: int,
    kv_dtype: str,
    dtype: str = "fp32",
    norm: bool = False,
    interleaved: bool = False,
    bench: bool = False,
) -> Case:
    hq, hkv, d = heads
    name = f"T{t}-{hq}x{hkv}x{d}-block{block_size}-kv_{kv_dtype}-{dtype}"
    name += "-norm" * norm + "-interleaved" * interleaved
    params = {
        "t": t,
        "heads": heads,
        "block_size": block_size,
        "kv_dtype": kv_dtype,
        "dtype": dtype,
        "norm": norm,
        "interleaved": interleaved,
    }
    return Case(name, params, bench)


CASES = (
    *(
        case
        for kv_dtype in ("fp32", "fp16", "bf16", "int8")
        for case in (
            _case(1, (4, 1, 64), 16, kv_dtype),
            _case(7, (7, 1, 80), 5, kv_dtype, "bf16", norm=True),
            _case(33, (8, 2, 96), 8, kv_dtype, interleaved=True),
            _case(5, (3, 3, 8), 1, kv_dtype, "fp16", norm=True, interleaved=True),
            _case(2, (8, 1, 256), 16, kv_dtype, "bf16"),
        )
    ),
    *(
        _case(t, (32, 8, 64), 16, kv_dtype, "bf16", bench=True)
        for kv_dtype in ("fp16", "int8")
        for t in (1, 16, 2048)
    ),
)


def _aot() -> dict[str, Case]:
    """T = 1 and T = 64: no kernel needs to know more of the rest."""
    sizes = [
        (model, kv_dtype, "bf16", False)
        for model in MODELS
        for kv_dtype in ("bf16", "fp16", "int8")
    ]
    sizes += [(LLAMA_8B, kv_dtype, "fp16", False) for kv_dtype in ("fp16", "int8")]
    sizes += [(LLAMA_1B, kv_dtype, "fp32", False) for kv_dtype in ("fp32", "int8")]
    sizes += [(LLAMA_8B, "bf16", "bf16", True), (QWEN3_8B, "int8", "bf16", True)]
    cases = [
        _case(
            t,
            (model.heads, model.kv_heads, model.head_dim),
            16,
            kv_dtype,
            dtype,
            norm=model.qk_norm,
            interleaved=interleaved,
        )
        for t in (1, 64)
        for model, kv_dtype, dtype, interleaved in sizes
    ]
    return {case.name: case for case in cases}


AOT = tuple(_aot().values())


def make_inputs(case: Case, device: str = "cpu", draw: int = 0) -> Inputs:
    """q, k, v are views of one fused projection, as the model has them."""
    p, random = case.params, Random(case, device, draw)
    (hq, hkv, d), t, dtype = p["heads"], p["t"], DTYPES[p["dtype"]]
    layout = KVLayout(p["kv_dtype"], p["block_size"], hkv, d)
    q, k, v = torch.split(random.normal(t, hq + 2 * hkv, d, dtype=dtype), [hq, hkv, hkv], dim=1)
    angle = random.normal(t, d // 2, std=10.0)
    pool, _ = paged_cache(random, layout, [3 * t + 2])
    return {
        "q": q,
        "k": k,
        "v": v,
        "cos": angle.cos(),
        "sin": angle.sin(),
        "pool": pool,
        "slot_mapping": random.permutation(pool.num_blocks * p["block_size"])[:t],
        "q_norm": random.normal(d, dtype=dtype) + 1 if p["norm"] else None,
        "k_norm": random.normal(d, dtype=dtype) + 1 if p["norm"] else None,
        "interleaved": p["interleaved"],
    }


def _bind(inputs: Inputs, impl: str) -> Callable[[], Any]:
    return lambda: rope_append(**inputs, impl=impl)


def _collect(inputs: Inputs, raw: Any) -> dict[str, Tensor]:
    return {"q": raw, **stored_tokens(inputs["pool"], inputs["slot_mapping"])}


def _flops(case: Case) -> int:
    hq, hkv, d = case.params["heads"]
    per_element = 3 + 4 * case.params["norm"]
    quantize = 2 * 2 * hkv * d if case.params["kv_dtype"] == "int8" else 0
    tokens = case.params["t"]
    return int(tokens * ((hq + hkv) * d * per_element + quantize))


def _bytes(case: Case) -> int:
    p = case.params
    hq, hkv, d = p["heads"]
    size = DTYPES[p["dtype"]].itemsize
    written = KVLayout(p["kv_dtype"], p["block_size"], hkv, d).bytes_per_token
    return int(p["t"] * ((2 * hq + 2 * hkv) * d * size + d * 4 + 8 + written))


ROPE_APPEND = Op("rope_append", CASES, make_inputs, _bind, _collect, _flops, _bytes, aot=AOT)
