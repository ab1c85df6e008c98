"""RoPE and cache write in Triton: one launch for q, k and v.

A program takes a few heads of one token, of q, of k or of v. A head is two tiles, the first and
the second elements of its pairs, so that both pairings and v go the same way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import launch
from kernels.layout import KVPool
from kernels.primitives import cast, round_half_even
from kernels.target import Target
from kernels.tuning import Config, Key, Tunable


def _default(key: Key, target: Target) -> Config:
    (head_dim,) = key
    if target.arch == "interpreter":
        return Config({"BLOCK_HEADS": 64}, num_warps=1, num_stages=1)
    heads = max(1, 512 // triton.next_power_of_2(head_dim))
    return Config({"BLOCK_HEADS": heads}, num_warps=1, num_stages=1)


def _space(key: Key, target: Target) -> list[Config]:
    (head_dim,) = key
    return [
        Config({"BLOCK_HEADS": heads}, num_warps, num_stages=1)
        for heads in (1, 2, 4, 8, 16)
        for num_warps in (1, 2, 4)
        if 2 <= heads * head_dim // (num_warps * target.warp_size) <= 32
    ]


# Key: (head_dim,).
ROPE_APPEND = Tunable("rope_append", _default, _space)


@triton.jit
def _load_pairs(
    x_ptr, heads, head_stride, inside, half, HEAD_DIM: tl.constexpr, STEP: tl.constexpr
):
    """Both elements of each pair, float32 [BLOCK_HEADS, HALF]; 0 where not `inside`."""
    GAP: tl.constexpr = 1 if STEP == 2 else HEAD_DIM // 2
    at = x_ptr + (heads.to(tl.int64) * head_stride)[:, None] + half[None, :] * STEP
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + GAP, mask=inside, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def _store_pairs(y_ptr, a, b, heads, inside, half, HEAD_DIM: tl.constexpr, STEP: tl.constexpr):
    """Rounded to y's dtype; y's heads lie side by side."""
    GAP: tl.constexpr = 1 if STEP == 2 else HEAD_DIM // 2
    at = y_ptr + heads[:, None] * HEAD_DIM + half[None, :] * STEP
    tl.store(at, cast(a, y_ptr.dtype.element_ty), mask=inside)
    tl.store(at + GAP, cast(b, y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _normed(a, b, norm_ptr, eps, half, HEAD_DIM: tl.constexpr, STEP: tl.constexpr):
    """RMSNorm of each head."""
    GAP: tl.constexpr = 1 if STEP == 2 else HEAD_DIM // 2
    inside = half < HEAD_DIM // 2
    weight_a = tl.load(norm_ptr + half * STEP, mask=inside, other=0.0).to(tl.float32)
    weight_b = tl.load(norm_ptr + half * STEP + GAP, mask=inside, other=0.0).to(tl.float32)
    mean_square = tl.div_rn(tl.sum(a * a + b * b, axis=1), HEAD_DIM * 1.0)
    root = tl.sqrt_rn(mean_square + eps)[:, None]
    return tl.div_rn(a, root) * weight_a[None, :], tl.div_rn(b, root) * weight_b[None, :]


@triton.jit
def _rotated(a, b, cos_ptr, sin_ptr, half, HEAD_DIM: tl.constexpr):
    """Each pair turned by its angle. Products are rounded before they are added, as torch does."""
    inside = half < HEAD_DIM // 2
    cos = tl.load(cos_ptr + half, mask=inside, other=0.0)[None, :]
    sin = tl.load(sin_ptr + half, mask=inside, other=0.0)[None, :]
    return a * cos - b * sin, b * cos + a * sin


@triton.jit
def _codes(x, divisor):
    """x / divisor [BLOCK_HEADS, HALF] as int8 codes, still float32; NaN gives 0."""
    x = tl.div_rn(x, divisor)
    rounded = tl.minimum(tl.maximum(round_half_even(x), -127.0), 127.0)
    return tl.where(x == x, rounded, 0.0)


@triton.jit
def _append(
    pool_ptr,
    scale_ptr,
    a,
    b,
    slot,
    heads,
    kv_heads,
    inside,
    half,
    HEAD_DIM: tl.constexpr,
    STEP: tl.constexpr,
    QUANTIZED: tl.constexpr,
):
    """Write heads to a slot of the pool; see `kernels.quantization` for the rule of int8."""
    row = slot * kv_heads
    if QUANTIZED:
        # As integers, magnitudes keep their order and NaN comes last; a maximum of floats drops it.
        bits_a, bits_b = tl.abs(a).to(tl.int32, bitcast=True), tl.abs(b).to(tl.int32, bitcast=True)
        most = tl.max(tl.maximum(bits_a, bits_b), axis=1).to(tl.float32, bitcast=True)
        scale = tl.div_rn(most, 127.0)
        divisor = tl.where(scale > 0, scale, 1.0)[:, None]
        a, b = _codes(a, divisor), _codes(b, divisor)
        tl.store(scale_ptr + row + heads, scale, mask=heads < kv_heads)
    _store_pairs(pool_ptr + row * HEAD_DIM, a, b, heads, inside, half, HEAD_DIM, STEP)


@triton.jit
def _rope_append_kernel(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,  # [T, Hkv, D]
    cos_ptr,  # float32 [T, D/2]
    sin_ptr,  # float32 [T, D/2]
    q_norm_ptr,  # [D]
    k_norm_ptr,  # [D]
    slot_ptr,  # int64 [T]
    out_ptr,  # [T, Hq, D], contiguous
    k_pool_ptr,  # [slots, Hkv, D]
    v_pool_ptr,  # [slots, Hkv, D]
    k_scale_ptr,  # float32 [slots, Hkv]
    v_scale_ptr,  # float32 [slots, Hkv]
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    cos_stride,
    sin_stride,
    q_heads,
    kv_heads,
    eps,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,  # D/2, up to a power of two
    STEP: tl.constexpr,  # between pairs: 2 if interleaved, else 1
    NORM_Q: tl.constexpr,
    NORM_K: tl.constexpr,
    QUANTIZED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    q_groups = tl.cdiv(q_heads, BLOCK_HEADS)
    kv_groups = tl.cdiv(kv_heads, BLOCK_HEADS)
    half = tl.arange(0, HALF)
    cos_ptr += token * cos_stride
    sin_ptr += token * sin_stride
    if group < q_groups:
        heads = group * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        inside = (heads < q_heads)[:, None] & (half < HEAD_DIM // 2)[None, :]
        a, b = _load_pairs(
            q_ptr + token * q_token_stride, heads, q_head_stride, inside, half, HEAD_DIM, STEP
        )
        if NORM_Q:
            a, b = _normed(a, b, q_norm_ptr, eps, half, HEAD_DIM, STEP)
        a, b = _rotated(a, b, cos_ptr, sin_ptr, half, HEAD_DIM)
        out = out_ptr + token * q_heads * HEAD_DIM
        _store_pairs(out, a, b, heads, inside, half, HEAD_DIM, STEP)
    else:
        slot = tl.load(slot_ptr + token)
        if slot >= 0:
            group -= q_groups
            heads = (group % kv_groups) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
            inside = (heads < kv_heads)[:, None] & (half < HEAD_DIM // 2)[None, :]
            if group < kv_groups:
                k = k_ptr + token * k_token_stride
                a, b = _load_pairs(k, heads, k_head_stride, inside, half, HEAD_DIM, STEP)
                if NORM_K:
                    a, b = _normed(a, b, k_norm_ptr, eps, half, HEAD_DIM, STEP)
                a, b = _rotated(a, b, cos_ptr, sin_ptr, half, HEAD_DIM)
                _append(
                    k_pool_ptr,
                    k_scale_ptr,
                    a,
                    b,
                    slot,
                    heads,
                    kv_heads,
                    inside,
                    half,
                    HEAD_DIM,
                    STEP,
                    QUANTIZED,
                )
            else:
                v = v_ptr + token * v_token_stride
                a, b = _load_pairs(v, heads, v_head_stride, inside, half, HEAD_DIM, STEP)
                _append(
                    v_pool_ptr,
                    v_scale_ptr,
                    a,
                    b,
                    slot,
                    heads,
                    kv_heads,
                    inside,
                    half,
                    HEAD_DIM,
                    STEP,
                    QUANTIZED,
                )


def rope_append(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    pool: KVPool,
    slot_mapping: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
) -> Tensor:
    """See `kernels.rope_append.rope_append`. Tokens with a negative slot are not written."""
    q, k, v, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, cos, sin))
    tokens, q_heads, head_dim = q.shape
    kv_heads = k.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    config = ROPE_APPEND.config((head_dim,), q.device)
    block = config.constants["BLOCK_HEADS"]
    launch(
        _rope_append_kernel,
        (tokens, triton.cdiv(q_heads, block) + 2 * triton.cdiv(kv_heads, block)),
        q,
        k,
        v,
        cos,
        sin,
        cos if q_norm is None else q_norm.contiguous(),
        cos if k_norm is None else k_norm.contiguous(),
        slot_mapping.contiguous(),
        out,
        pool.k,
        pool.v,
        cos if pool.k_scale is None else pool.k_scale,
        cos if pool.v_scale is None else pool.v_scale,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        cos.stride(0),
        sin.stride(0),
        q_heads,
        kv_heads,
        eps,
        HEAD_DIM=head_dim,
        HALF=triton.next_power_of_2(head_dim // 2),
        STEP=2 if interleaved else 1,
        NORM_Q=q_norm is not None,
        NORM_K=k_norm is not None,
        QUANTIZED=pool.layout.quantized,
        enable_fp_fusion=False,  # as the reference, for equal codes
        **config.meta,
    )
    return out
