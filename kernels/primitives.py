"""Device functions that several Triton kernels share.

Triton's interpreter keeps bfloat16 as bit patterns: it truncates where a GPU rounds, and its `dot`
multiplies the patterns. `cast` and `dot` are right in both; kernels use them, never `tl.dot` or
`.to(tl.bfloat16)`.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LOG2E = tl.constexpr(1.4426950408889634)
# Adding and subtracting it rounds any |x| <= 2^22 half to even.
_ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23


@triton.jit
def cast(x, dtype: tl.constexpr):
    """x in `dtype`, rounded to nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16 and x.dtype == tl.float32:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # A NaN's payload could carry over into an infinity: keep it, made quiet.
        rounded = tl.where(x == x, rounded, (bits >> 16) | 0x40)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def dot(a, b, acc):
    """acc + a b in float32. a [M, K], b [K, N], one dtype; float32 goes without TF32."""
    if INTERPRETED:
        # numpy's float32 product sums in an order that depends on the tiles' shapes.
        exact = tl.dot(a.to(tl.float32).to(tl.float64), b.to(tl.float32).to(tl.float64))
        return (acc.to(tl.float64) + exact).to(tl.float32)
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def int8_to_float16(x, PTX: tl.constexpr):
    """int8 x as float16, exactly. With PTX, five instructions for four codes instead of twelve.

    A code c, its sign bit flipped, is the byte c + 128; under the byte 0x64 it is the float16
    1152 + c.
    """
    if PTX:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 u, bias;
            mov.b32 bias, 0x64806480;
            xor.b32 u, $2, 0x80808080;
            prmt.b32 $0, u, 0x64646464, 0x5150;
            prmt.b32 $1, u, 0x64646464, 0x5352;
            sub.f16x2 $0, $0, bias;
            sub.f16x2 $1, $1, bias;
            }
            """,
            "=r,=r,r",
            [x],
            dtype=tl.float16,
            # "Impure" keeps the compiler from moving a change of layout before this, which would
            # make it read codes byte by byte: 1025 instead of 677 instructions a tile in decode.
            is_pure=False,
            pack=4,
        )
    else:
        return x.to(tl.float16)


@triton.jit
def round_half_even(x):
    """x float32, |x| <= 2^22 -> the nearest integer, as float32."""
    return (x + _ROUNDER) - _ROUNDER


@triton.jit
def silu(x):
    """x * sigmoid(x), float32."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """tanh of float32, to a few units in the last place near zero too."""
    square = x * x
    # Taylor's series where 1 - exp(-2x) would cancel.
    series = -0.05396825396825397 + square * 0.021869488536155203
    series = square * (-0.3333333333333333 + square * (0.13333333333333333 + square * series))
    near = x + x * series
    decay = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decay) / (1.0 + decay)
    return tl.where(tl.abs(x) < 0.2, near, tl.where(x < 0, -far, far))
