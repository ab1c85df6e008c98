"""Configurations of the attention kernels. A key is (kv dtype, compute dtype, head_dim, group)."""

from __future__ import annotations

from itertools import product

import triton

from kernels.target import Target
from kernels.tuning import Config, Key, Tunable

# Most parts of one row. More would make their sum slower than what the parts save.
MAX_SPLITS = 128


def head_block(dim: int) -> int:
    """head_dim padded to what a tensor core takes."""
    return max(16, triton.next_power_of_2(dim))


def _decode_default(key: Key, target: Target) -> Config:
    _, compute, dim, group = key
    rows = max(16, triton.next_power_of_2(group))
    if target.arch == "interpreter":
        return _decode(rows, 32, 64, 2, 4, 1)
    wide = head_block(dim) > 128
    if compute == "fp32":
        return _decode(rows, 16 if wide else 32, 512, 2, 4, 2)
    return _decode(rows, 32 if wide else 64, 512, 4, 4, 3)


def _decode_space(key: Key, target: Target) -> list[Config]:
    kv, compute, dim, group = key
    rows = max(16, triton.next_power_of_2(group))
    size = 1 if kv == "int8" else 2 if compute != "fp32" else 4
    return [
        _decode(rows, block_n, split, waves, warps, stages)
        for block_n, split, waves, warps, stages in product(
            (32, 64, 128, 256), (256, 512, 1024), (2, 4), (2, 4, 8), (2, 3, 4, 5)
        )
        # K and V of each stage, of all programs that share a multiprocessor: what its memory
        # holds, and enough under way to keep the bus busy.
        if (bytes_of := waves * 2 * block_n * head_block(dim) * size) * stages <= 200_000
        and bytes_of * (stages - 1) >= 32_000
        and block_n >= 16 * warps
    ]


def _decode(block_m: int, block_n: int, split: int, waves: int, warps: int, stages: int) -> Config:
    constants = {"BLOCK_M": block_m, "BLOCK_N": block_n, "SPLIT": split, "WAVES": waves}
    return Config(constants, warps, stages)


def _prefill_default(key: Key, target: Target) -> Config:
    _, compute, dim, group = key
    least = triton.next_power_of_2(group)
    if target.arch == "interpreter":
        return _prefill(max(32, least), 32, 4, 1)
    wide = head_block(dim) > 128
    if compute == "fp32":
        return _prefill(max(32, least), 16 if wide else 32, 4, 2)
    if wide:
        return _prefill(max(64, least), 32, 4, 2)
    return _prefill(max(128, least), 64, 8 if head_block(dim) == 128 else 4, 3)


def _prefill_space(key: Key, target: Target) -> list[Config]:
    _, _, dim, group = key
    least = triton.next_power_of_2(group)
    return [
        _prefill(block_m, block_n, warps, stages)
        for block_m, block_n, warps, stages in product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
        if block_m >= least and 2 * stages * block_n * head_block(dim) * 2 <= 200_000
    ]


def _prefill(block_m: int, block_n: int, warps: int, stages: int) -> Config:
    return Config({"BLOCK_M": block_m, "BLOCK_N": block_n}, warps, stages)


DECODE = Tunable("attention_decode", _decode_default, _decode_space)
PREFILL = Tunable("attention_prefill", _prefill_default, _prefill_space)
