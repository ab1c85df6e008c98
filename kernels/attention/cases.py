"""Registry entry of `attention`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from kernels.attention import attention
from kernels.case_inputs import DTYPES, Case, Inputs, Random, paged_cache
from kernels.layout import KVLayout
from kernels.model_shapes import LLAMA_1B, LLAMA_8B, MODELS, QWEN3_8B
from kernels.op import Op


def _case(
    kind: str,
    rows: Sequence[tuple[int, int]],
    heads: tuple[int, int, int],
    block_size: int,
    kv_dtype: str,
    dtype: str,
    window: int | None = None,
    softcap: float | None = None,
    bench: bool = False,
    gpu: bool = False,
    told: bool = False,
) -> Case:
    """`rows`: (queries, tokens in the cache) of each sequence. `told`: the call says how many
    queries a sequence has at most, as models do."""
    hq, hkv, d = heads
    name = f"{kind}-{hq}x{hkv}x{d}-block{block_size}-kv_{kv_dtype}-{dtype}"
    name += f"-window{window}" if window else ""
    name += f"-softcap{softcap:g}" if softcap else ""
    params = {
        "rows": tuple(rows),
        "heads": heads,
        "block_size": block_size,
        "kv_dtype": kv_dtype,
        "dtype": dtype,
        "window": window,
        "softcap": softcap,
        "max_queries": max(n for n, _ in rows) if told else None,
    }
    return Case(name, params, bench, gpu)


_DECODE = [(1, n) for n in (1, 3, 54, 97, 199)] + [(1, 0), (0, 5), (0, 0)]
_PREFILL = [(97, 97), (1, 1), (54, 54)]
_CHUNKED = [(3, 199), (54, 97), (2, 3)]
_MIXED = [(1, 199), (33, 33), (1, 54), (0, 3), (5, 97), (1, 1), (3, 1)]
# (kv dtype, q dtype): the model's combinations, each kept apart by the fast paths.
_PAIRS = (("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "bf16"), ("int8", "fp32"), ("int8", "bf16"))


def _small() -> list[Case]:
    cases = []
    for kv, q in _PAIRS:
        cases += [
            _case("decode", _DECODE, (4, 1, 64), 16, kv, q),
            _case("decode", _DECODE, (7, 1, 80), 5, kv, q, window=13),
            _case("decode", _DECODE, (8, 2, 8), 1, kv, q, softcap=5.0),
            _case("decode-long", [(1, 1999), (1, 1)], (8, 1, 128), 8, kv, q, window=533),
            _case("prefill", _PREFILL, (8, 1, 96), 8, kv, q),
            _case("prefill", _PREFILL, (3, 3, 16), 5, kv, q, window=37),
            _case("chunked", _CHUNKED, (7, 1, 64), 16, kv, q),
            _case("chunked", _CHUNKED, (4, 1, 256), 1, kv, q, window=3, softcap=30.0),
            _case("mixed", _MIXED, (8, 2, 64), 5, kv, q),
            _case("mixed", _MIXED, (14, 2, 80), 16, kv, q, window=13),
        ]
    cases.append(_case("chunked-long", [(600, 1999)], (2, 1, 16), 16, "fp32", "fp32", window=533))
    return cases


def _bench() -> list[Case]:
    shapes = {
        "decode-B1": [(1, 1024)],
        "decode-B16": [(1, 1024)] * 16,
        "decode-ragged": [(1, 64 * (i + 1)) for i in range(16)],
        "prefill": [(512, 512)],
        "chunked": [(256, 1024)],
    }
    return [
        _case(kind, rows, (32, 8, 64), 16, kv, "bf16", bench=True, told=True)
        for kind, rows in shapes.items()
        for kv in ("bf16", "fp16", "int8")
    ]


def _bench_on_gpu() -> list[Case]:
    """Llama-3.1-8B's heads: over 256 MB of KV in int8, one long row, a long prefill. float16's and
    int8's caches are also there with the same float16 queries, to be compared."""
    kvs = ("bf16", "fp16", "int8")
    shapes = {
        "decode-B32-4k": [(1, 4096)] * 32,
        "decode-B1-16k": [(1, 16384)],
        "decode-ragged-B32": [(1, 256 * (i + 1)) for i in range(32)],
        "prefill-16k": [(16384, 16384)],
    }

    def case(kind: str, rows: Sequence[tuple[int, int]], kv: str, q: str) -> Case:
        return _case(kind, rows, (32, 8, 128), 16, kv, q, bench=True, gpu=True, told=True)

    return [
        # The reference would hold all scores of the long prefill.
        replace(case(kind, rows, kv, q), stand_in=case("prefill-1k", [(1024, 1024)], kv, q))
        if kind == "prefill-16k"
        else case(kind, rows, kv, q)
        for kind, rows in shapes.items()
        for kv, q in (*((kv, "bf16") for kv in kvs), ("fp16", "fp16"), ("int8", "fp16"))
    ]


def _aot() -> list[Case]:
    """What decides the code: heads, dtypes, window, softcap, and batches of more than 64. Every
    option is there with most others, not with all."""
    decode, prefill = [(1, 4096)], [(2048, 4096)]
    cases = []
    for model in MODELS:
        heads = (model.heads, model.kv_heads, model.head_dim)
        pairs = [("bf16", "bf16"), ("int8", "bf16")]
        if model is LLAMA_8B:
            pairs += [("fp16", "bf16"), ("fp16", "fp16"), ("int8", "fp16"), ("fp32", "bf16")]
        if model is LLAMA_1B:
            pairs += [("fp16", "bf16"), ("fp32", "fp32"), ("int8", "fp32"), ("bf16", "fp16")]
        if model is not QWEN3_8B:  # to attention, Llama-3.1-8B
            cases += [
                _case(kind, rows, heads, 16, kv, q, window=model.window, told=True)
                for kv, q in pairs
                for kind, rows in (("decode", decode), ("prefill", prefill))
            ]
    heads = (LLAMA_8B.heads, LLAMA_8B.kv_heads, LLAMA_8B.head_dim)
    cases += [
        *(
            _case(f"decode-B{batch}", decode * batch, heads, 16, kv, "bf16", told=True)
            for batch in (128, 256)
            for kv in ("bf16", "int8")
        ),
        _case("decode", decode, heads, 1, "bf16", "bf16", told=True),
        _case("decode", decode, heads, 256, "int8", "bf16", told=True),
        _case("decode", decode, heads, 16, "bf16", "bf16", softcap=30.0, told=True),
        _case("prefill", prefill, heads, 16, "bf16", "bf16", softcap=30.0, told=True),
    ]
    return cases


CASES = (*_small(), *_bench(), *_bench_on_gpu())
AOT = tuple(_aot())


def make_inputs(case: Case, device: str = "cpu", draw: int = 0) -> Inputs:
    """Pools as `paged_cache` makes them, NaN wherever no token is."""
    p, random = case.params, Random(case, device, draw)
    hq, hkv, d = p["heads"]
    layout = KVLayout(p["kv_dtype"], p["block_size"], hkv, d)
    counts = [n for n, _ in p["rows"]]
    lengths = [length for _, length in p["rows"]]
    pool, table = paged_cache(random, layout, lengths)
    return {
        "q": random.normal(sum(counts), hq, d, dtype=DTYPES[p["dtype"]]),
        "pool": pool,
        "query_start": torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=device),
        "kv_len": torch.tensor(lengths, dtype=torch.int32, device=device),
        "block_table": table,
        "window": p["window"],
        "softcap": p["softcap"],
        "max_queries": p.get("max_queries"),
    }


def _bind(inputs: Inputs, impl: str) -> Callable[[], Any]:
    return lambda: attention(**inputs, impl=impl)


def _collect(inputs: Inputs, raw: Any) -> dict[str, Tensor]:
    return {"out": raw}


def _seen(n: int, length: int, window: int | None) -> tuple[int, int]:
    """(pairs of query and visible position, positions that any query sees) of one sequence."""
    positions = [p for p in range(length - n, length) if p >= 0]
    spans = [p + 1 if window is None else min(p + 1, window) for p in positions]
    read = positions[-1] + 1 - (positions[0] + 1 - spans[0]) if positions else 0
    return sum(spans), read


def _flops(case: Case) -> int:
    hq, _, d = case.params["heads"]
    pairs = sum(_seen(n, length, case.params["window"])[0] for n, length in case.params["rows"])
    return int(4 * hq * d * pairs)


def _bytes(case: Case) -> int:
    p = case.params
    hq, hkv, d = p["heads"]
    layout = KVLayout(p["kv_dtype"], p["block_size"], hkv, d)
    read = sum(_seen(n, length, p["window"])[1] for n, length in p["rows"])
    queries = sum(n for n, _ in p["rows"])
    return int(read * layout.bytes_per_token + 2 * queries * hq * d * DTYPES[p["dtype"]].itemsize)


ATTENTION = Op("attention", CASES, make_inputs, _bind, _collect, _flops, _bytes, aot=AOT)
