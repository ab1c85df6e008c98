"""Configurations of the attention kernels.

A key is (kv dtype, compute dtype, head_dim, query heads of a kv head, "all" or "window").
"""

from __future__ import annotations

import math
from itertools import product

import triton

from kernels.target import Target
from kernels.tuning import Config, Key, Tunable

# Most parts of one row. More would make their sum slower than what the parts save.
MAX_SPLITS = 128
_MOST_TRIED = 40


def head_block(dim: int) -> int:
    """head_dim padded to what a tensor core takes."""
    return max(16, triton.next_power_of_2(dim))


def _shared_bytes(target: Target) -> int:
    """Shared memory of a multiprocessor, less what the rest of a kernel takes."""
    return 150_000 if target.arch == "sm_80" else 215_000


def _few(configs: list[Config]) -> list[Config]:
    """Without repetitions, evenly thinned to what is tried in a minute."""
    unique = list({str(config.meta): config for config in configs}.values())
    return unique[:1] + unique[1 :: math.ceil(len(unique) / _MOST_TRIED)]


def _decode_default(key: Key, target: Target) -> Config:
    kv, compute, dim, group, _ = key
    rows = max(16, triton.next_power_of_2(group))
    if target.arch == "interpreter":
        return _decode(rows, 32, 64, 2, 4, 1)
    if compute == "fp32":  # no tensor cores: every product is a register's
        warps = 4 if kv == "fp32" and target.arch != "sm_80" else 8
        return _decode(rows, 16, 512, 2, warps, 2 if kv == "fp32" else 1)
    # Five stages keep two tiles of K and V under way, as the block table's look-up takes two.
    return _decode(rows, 32 if head_block(dim) > 128 else 64, 512, 3, 4, 5)


def _decode_space(key: Key, target: Target) -> list[Config]:
    kv, compute, dim, group, _ = key
    rows = max(16, triton.next_power_of_2(group))
    found = [_decode_default(key, target)]
    if compute != "fp32":
        tile = 2 * head_block(dim) * (1 if kv == "int8" else 2)  # bytes of K and V of a token
        found += [
            _decode(rows, block_n, split, waves, warps, stages)
            for block_n, split, waves, warps, stages in product(
                (32, 64, 128), (256, 512), (2, 3, 4), (4, 8), (4, 5, 6)
            )
            # Programs that share a multiprocessor share its memory, threads and registers; with
            # `stages` stages, all but three hold tiles under way: enough to keep the bus busy.
            if waves * block_n * tile * (stages - 3) <= _shared_bytes(target)
            and waves * block_n * tile * (stages - 3) >= 24_000
            and waves * warps <= 16
            and block_n >= 8 * warps
        ]
    return _few(found)


def _decode(block_m: int, block_n: int, split: int, waves: int, warps: int, stages: int) -> Config:
    constants = {"BLOCK_M": block_m, "BLOCK_N": block_n, "SPLIT": split, "WAVES": waves}
    return Config(constants, warps, stages)


def _prefill_default(key: Key, target: Target) -> Config:
    kv, compute, dim, group, _ = key
    least = triton.next_power_of_2(group)
    if target.arch == "interpreter":
        return _prefill(max(64, least), 64, 4, 1)
    if compute == "fp32":
        return _prefill(max(16, least), 16, 8, 2 if kv == "fp32" else 1)
    if target.arch == "sm_80":  # accumulators and operands are all in registers
        small = kv == "int8" or head_block(dim) > 128
        block_n = 16 if kv == "int8" and head_block(dim) > 128 else 32
        return _prefill(max(64 if small else 128, least), block_n, 8, 2)
    if head_block(dim) > 128:
        return _prefill(max(64, least), 32, 8, 2)
    # Dequantising takes registers. 128 tokens fit too, but for windows and large batches.
    return _prefill(max(128, least), 32 if kv == "int8" else 64, 8, 3)


def _prefill_space(key: Key, target: Target) -> list[Config]:
    kv, compute, dim, group, _ = key
    least = triton.next_power_of_2(group)
    found = [_prefill_default(key, target)]
    if compute != "fp32":
        tile = 2 * head_block(dim) * (1 if kv == "int8" else 2)
        found += [
            _prefill(block_m, block_n, warps, stages)
            for block_m, block_n, warps, stages in product(
                (64, 128), (32, 64, 128), (4, 8), (2, 3, 4)
            )
            if block_m >= least
            and block_m >= 16 * warps // 2
            and block_m * head_block(dim) * 2 + stages * block_n * tile <= _shared_bytes(target)
        ]
    return _few(found)


def _prefill(block_m: int, block_n: int, warps: int, stages: int) -> Config:
    return Config({"BLOCK_M": block_m, "BLOCK_N": block_n}, warps, stages)


DECODE = Tunable("attention_decode", _decode_default, _decode_space)
PREFILL = Tunable("attention_prefill", _prefill_default, _prefill_space)
