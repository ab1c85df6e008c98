"""The same operations by other libraries, as fast as they offer them, on the case's own inputs."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.case_inputs import Case, Inputs
from kernels.quantization import dequantize

Call = Callable[[], Any]


@dataclass(frozen=True)
class Peer:
    """`prepare` returns the call; `moves` is the case whose bytes the call moves at least."""

    name: str
    prepare: Callable[[], Call]
    moves: Case


def peers(op: str, case: Case, inputs: Inputs) -> Iterator[Peer]:
    """Each peer that is installed.

    Attention's, but for flashinfer, get K and V side by side in q's dtype, and move those bytes,
    whatever the cache holds. Preparing may raise, where a peer does not take such inputs.
    """
    if op in _TORCH:
        yield Peer("torch", lambda: _TORCH[op](inputs), case)
    if op == "attention" and case.params["window"] is None and case.params["softcap"] is None:
        yield from _attention(case, inputs)


def _rms_norm(inputs: Inputs) -> Call:
    x, weight, residual = inputs["x"], inputs["weight"], inputs["residual"]
    wide, dtype = weight.float(), inputs["out_dtype"]

    def call() -> Any:
        s = x if residual is None else x + residual
        return F.rms_norm(s, wide.shape, wide, 1e-5).to(dtype), s

    return call


def _linear(inputs: Inputs) -> Call:
    x, weight, bias, residual = (inputs[name] for name in ("x", "weight", "bias", "residual"))
    if residual is None:
        return lambda: F.linear(x, weight, bias)
    return lambda: residual + F.linear(x, weight, bias)


def _decode_mlp(inputs: Inputs) -> Call:
    x, norm, gate_up, down = (inputs[name] for name in ("x", "norm_weight", "gate_up", "down"))

    def call() -> Tensor:
        y = F.rms_norm(x, norm.shape, norm, 1e-5).to(gate_up.dtype)
        gate, up = F.linear(y, gate_up).chunk(2, dim=1)
        out: Tensor = x + F.linear(F.silu(gate) * up, down)
        return out

    return call


def _logits(inputs: Inputs) -> Call:
    hidden, norm, head = (inputs[name] for name in ("hidden", "norm_weight", "head"))

    def call() -> Tensor:
        return F.linear(F.rms_norm(hidden, norm.shape, norm, 1e-5).to(head.dtype), head).float()

    return call


def _greedy(inputs: Inputs) -> Call:
    logits = _logits(inputs)
    return lambda: logits().argmax(-1)


_TORCH: dict[str, Callable[[Inputs], Call]] = {
    "rms_norm": _rms_norm,
    "linear": _linear,
    "decode_mlp": _decode_mlp,
    "logits": _logits,
    "greedy": _greedy,
}


def _attention(case: Case, inputs: Inputs) -> Iterator[Peer]:
    counts = {n for n, _ in case.params["rows"]}
    if len(counts) != 1:
        return  # ragged queries have no dense form
    on_gpu = inputs["q"].device.type == "cuda"
    dense = replace(case, params={**case.params, "kv_dtype": case.params["dtype"]})
    yield Peer("sdpa", lambda: _sdpa(case, inputs), dense)
    if on_gpu:
        yield Peer("flex", lambda: _flex(case, inputs), dense)
    if on_gpu and importlib.util.find_spec("flash_attn") is not None:
        yield Peer("flash_attn", lambda: _flash_attn(case, inputs), dense)
    decodes = counts == {1} and not inputs["pool"].layout.quantized
    if on_gpu and decodes and importlib.util.find_spec("flashinfer") is not None:
        yield Peer("flashinfer", lambda: _flashinfer(case, inputs), case)


def _dense(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, n, Hq, D], k and v [B, L, Hkv, D], zeros past a sequence's length."""
    q, pool, table = inputs["q"], inputs["pool"], inputs["block_table"]
    rows = case.params["rows"]
    longest = max(length for _, length in rows)
    kv = []
    for values, scales in ((pool.k, pool.k_scale), (pool.v, pool.v_scale)):
        dense = q.new_zeros(len(rows), longest, *values.shape[2:])
        for row, (_, length) in enumerate(rows):
            blocks = table[row, : math.ceil(length / pool.layout.block_size)].long()
            tokens = values[blocks].flatten(0, 1)[:length]
            if scales is not None:
                tokens = dequantize(tokens, scales[blocks].flatten(0, 1)[:length], q.dtype)
            dense[row, :length] = tokens
        kv.append(dense)
    return q.unflatten(0, (len(rows), -1)), kv[0], kv[1]


def _sdpa(case: Case, inputs: Inputs) -> Call:
    q, k, v = (x.transpose(1, 2).contiguous() for x in _dense(case, inputs))
    rows, n, longest = case.params["rows"], q.shape[2], k.shape[2]
    equal = all(length == longest for _, length in rows)
    causal = equal and n == longest and n > 1
    mask = None
    if not causal and (n > 1 or not equal):
        lengths = inputs["kv_len"].long()[:, None, None, None]
        last = lengths - n + torch.arange(n, device=q.device)[:, None]
        mask = torch.arange(longest, device=q.device) <= last
    return lambda: F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True
    )


def _flex(case: Case, inputs: Inputs) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = (x.transpose(1, 2).contiguous() for x in _dense(case, inputs))
    lengths, n = inputs["kv_len"].long(), q.shape[2]

    def visible(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return column <= lengths[b] - n + row

    mask = create_block_mask(visible, len(lengths), None, n, k.shape[2], device=q.device.type)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def _flash_attn(case: Case, inputs: Inputs) -> Call:
    from flash_attn import flash_attn_with_kvcache

    q, k, v = _dense(case, inputs)
    lengths = inputs["kv_len"]
    return lambda: flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True)


def _flashinfer(case: Case, inputs: Inputs) -> Call:
    import flashinfer

    q, pool, table = inputs["q"], inputs["pool"], inputs["block_table"]
    layout = pool.layout
    lengths = torch.tensor([length for _, length in case.params["rows"]], dtype=torch.int32)
    pages = (lengths + layout.block_size - 1) // layout.block_size
    starts = torch.cat([torch.zeros(1), pages.cumsum(0)]).int()
    used = torch.cat([table[row, : int(count)] for row, count in enumerate(pages)])
    buffer = torch.empty(256 << 20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(buffer, "NHD")
    wrapper.plan(
        starts.to(q.device),
        used,
        ((lengths - 1) % layout.block_size + 1).to(q.device),
        q.shape[1],
        layout.num_kv_heads,
        layout.head_dim,
        layout.block_size,
        q_data_type=q.dtype,
        kv_data_type=pool.k.dtype,
    )
    return lambda: wrapper.run(q, (pool.k, pool.v))
