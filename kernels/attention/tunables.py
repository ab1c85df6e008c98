"""Configurations of the attention kernels, and what they depend on.

A key is (kv dtype, q dtype, head_dim, query heads of a kv head, "all" or "window").
"""

from __future__ import annotations

import math
from itertools import product

import torch
import triton

from kernels.target import Target
from kernels.tuning import Config, Key, Tunable

# Most parts of one row. More would make their sum slower than what the parts save; long rows have
# longer parts instead.
MAX_SPLITS = 32
_MOST_TRIED = 40


def key_of(kv: str, q: torch.dtype, dim: int, group: int, window: int | None) -> Key:
    """The key of a call."""
    name = str(q).removeprefix("torch.")
    return (kv, name, dim, group, "all" if window is None else "window")


def compute_dtype(kv: str, q: torch.dtype | str) -> str:
    """What products are made in: loses nothing of q, K and V; codes of int8 are exact in float16.

    bfloat16 queries become float16 exactly, but for what is below 6e-8 or above 65504.
    """
    name = str(q).removeprefix("torch.")
    if name == "float32" or kv == "fp32":
        return "float32"
    if kv == "bf16":
        return "bfloat16" if name == "bfloat16" else "float32"
    return "float16"


def head_block(dim: int) -> int:
    """head_dim padded to what a tensor core takes."""
    return max(16, triton.next_power_of_2(dim))


def _decode_default(key: Key, target: Target) -> Config:
    kv, q, dim, group, _ = key
    rows, wide = max(16, triton.next_power_of_2(group)), head_block(dim) > 128
    if target.arch == "interpreter":
        return _decode(rows, 32, 64, 2, 4, 1)
    if compute_dtype(kv, q) == "float32":  # no tensor cores: every product is a register's
        warps = 4 if kv == "fp32" and not target.mma_sync else 8
        return _decode(rows, 16, 256, 1, warps, 2 if kv == "fp32" else 1)
    if target.arch.startswith("gfx"):
        return _decode(rows, 16 if wide else 32, 256, 2, 4, 2)
    # Two programs a multiprocessor have registers to spare. Five stages keep two tiles of K and V
    # under way, as the block table's look-up takes two.
    return _decode(rows, 32 if wide else 64, 256, 2, 4, 5)


def _decode_space(key: Key, target: Target) -> list[Config]:
    kv, q, dim, group, _ = key
    rows = max(16, triton.next_power_of_2(group))
    found = [_decode_default(key, target)]
    if compute_dtype(kv, q) != "float32":
        tile = _tile_bytes(kv, dim)
        found += [
            _decode(rows, block_n, split, waves, warps, stages)
            for block_n, split, waves, warps, stages in product(
                (32, 64, 128), (128, 256, 512), (2, 3, 4), (4, 8), (5, 7)
            )
            # Programs that share a multiprocessor share its memory, threads and registers; the
            # tiles under way must be enough to keep the bus busy.
            if 24_000 <= waves * block_n * tile * (stages // 2) <= target.shared_bytes
            and waves * warps <= 16
            and block_n >= 8 * warps
            and block_n <= split // 2
        ]
    return _few(found)


def _decode(block_m: int, block_n: int, split: int, waves: int, warps: int, stages: int) -> Config:
    constants = {"BLOCK_M": block_m, "BLOCK_N": block_n, "SPLIT": split, "WAVES": waves}
    return Config(constants, warps, stages)


def _prefill_default(key: Key, target: Target) -> Config:
    kv, q, dim, group, _ = key
    least, wide = triton.next_power_of_2(group), head_block(dim) > 128
    if target.arch == "interpreter":
        return _prefill(max(64, least), 64, 4, 1)
    if compute_dtype(kv, q) == "float32":
        return _prefill(max(16, least), 16, 8, 2 if kv == "fp32" else 1)
    if target.arch.startswith("gfx"):
        return _prefill(max(64 if wide else 128, least), 32, 4, 1)
    if target.mma_sync:  # accumulators and operands are all in registers
        if kv == "int8":
            return _prefill(max(64, least), 16 if wide else 32, 8, 5)
        return _prefill(max(64 if wide else 128, least), 32, 8, 5)
    if kv == "int8":  # dequantising takes registers, float16's second product still more
        return _prefill(max(64, least), 16 if q == "float16" else 32, 8, 5)
    return _prefill(max(64 if wide else 128, least), 32 if wide else 64, 8, 5)


def _prefill_space(key: Key, target: Target) -> list[Config]:
    kv, q, dim, group, _ = key
    least = triton.next_power_of_2(group)
    found = [_prefill_default(key, target)]
    if compute_dtype(kv, q) != "float32":
        queries, tile = head_block(dim) * 2, _tile_bytes(kv, dim)
        found += [
            _prefill(block_m, block_n, warps, stages)
            for block_m, block_n, warps, stages in product((64, 128), (32, 64, 128), (4, 8), (5, 7))
            if block_m >= max(least, 8 * warps)
            and block_m * queries + (stages // 2 + 1) * block_n * tile <= target.shared_bytes - 2048
        ]
    return _few(found)


def _prefill(block_m: int, block_n: int, warps: int, stages: int) -> Config:
    return Config({"BLOCK_M": block_m, "BLOCK_N": block_n}, warps, stages)


def _tile_bytes(kv: str, dim: int) -> int:
    """K and V of one token and head, as they are kept."""
    return 2 * head_block(dim) * {"int8": 1, "fp32": 4}.get(kv, 2)


def _few(configs: list[Config]) -> list[Config]:
    """Without repetitions, evenly thinned to what is tried in a minute."""
    unique = list({str(config.meta): config for config in configs}.values())
    return unique[:1] + unique[1 :: math.ceil(len(unique) / _MOST_TRIED)]


DECODE = Tunable("attention_decode", _decode_default, _decode_space)
PREFILL = Tunable("attention_prefill", _prefill_default, _prefill_space)
