"""Rules by which the kernels that read a weight matrix once choose their tiles.

A key is (rows of weights N, columns K, dtype). Nothing here may depend on the rows of x, except
what changes no sum: the tile's padded rows and the number of pipeline stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from kernels.target import Target
from kernels.tuning import Config, Key

MOST_ROWS = 64  # more go to the library's GEMM, which is bound by arithmetic then
_TYPICAL_ROWS = 16
# Architectures that multiply from registers: a pipeline has one buffer fewer than stages.
_FROM_REGISTERS = ("sm_80", "sm_86", "sm_89")
_MOST_TRIED = 40


def key_of(n: int, k: int, dtype: torch.dtype) -> Key:
    """The key of a weight matrix [n, k]."""
    return (n, k, str(dtype).removeprefix("torch."))


def padded_rows(rows: int) -> int:
    """Rows of x that a tile holds for `rows` up to `MOST_ROWS`."""
    return max(16, 1 << (rows - 1).bit_length())


def launch_options(
    config: Config, target: Target, rows: int, dtype: torch.dtype, x_dtype: torch.dtype
) -> dict[str, Any]:
    """num_warps and num_stages, with as many stages as fit beside the rows of x."""
    stage = _stage_bytes(config, padded_rows(rows), dtype.itemsize, x_dtype.itemsize)
    most = max(1, _usable(target) // stage + (target.arch in _FROM_REGISTERS))
    return {"num_warps": config.num_warps, "num_stages": min(config.num_stages, most)}


def default_config(key: Key, target: Target, *, split: bool) -> Config:
    """Two programs an SM, each with tens of kilobytes in flight."""
    n, k, dtype = key
    if target.arch == "interpreter":
        # Two parts, for the sake of testing them; few programs and loops, as each costs much.
        splits = 2 if split and k > 128 else 1
        constants = {"BLOCK_N": 128, "BLOCK_K": 128}
        return Config(constants | ({"SPLIT_K": splits} if split else {}), 1, 1)
    if dtype == "float32":
        config = Config({"BLOCK_N": 32, "BLOCK_K": 32}, 4, 4)
    else:
        # Elsewhere wider tiles spill, with one Triton or another.
        wide = target.nvidia and target.arch != "sm_100"
        config = Config({"BLOCK_N": 64, "BLOCK_K": 128 if wide else 64}, 4, 4)
    if not split:
        return config
    return Config({**config.constants, "SPLIT_K": _splits(n, k, config, target)}, 4, 4)


def config_space(key: Key, target: Target, *, split: bool) -> list[Config]:
    """What is worth timing: tiles that keep enough bytes in flight, grids that fill the GPU."""
    n, k, dtype = key
    size = 4 if dtype == "float32" else 2
    found = []
    for config in _candidates(dtype, split):
        tile = config.constants["BLOCK_N"] * config.constants["BLOCK_K"] * size
        splits = config.constants.get("SPLIT_K", 1)
        programs = math.ceil(n / config.constants["BLOCK_N"]) * splits
        stage = _stage_bytes(config, _TYPICAL_ROWS, size, 4)
        if (
            8192 <= tile <= 32768
            and tile * (config.num_stages - 1) >= 16384
            and stage * config.num_stages <= _usable(target)
            and k >= 4 * splits * config.constants["BLOCK_K"]
            and (splits == 1 or programs <= 16 * target.sms)
            and (2 * programs >= target.sms or splits == 8 or not split)
        ):
            found.append(config)
    default = default_config(key, target, split=split)
    return [default, *(config for config in found if config != default)][:_MOST_TRIED]


def _candidates(dtype: str, split: bool) -> Iterator[Config]:
    # float32 products run outside the tensor cores, with a tile's columns in registers.
    columns = (32,) if dtype == "float32" else (128, 256)
    for block_n in (32, 64, 128):
        for block_k in columns:
            for splits in (1, 2, 4, 8) if split else (1,):
                for warps in (4,) if block_n < 128 else (4, 8):
                    for stages in (3, 4) if split else (3, 4, 5):
                        constants = {"BLOCK_N": block_n, "BLOCK_K": block_k}
                        if split:
                            constants["SPLIT_K"] = splits
                        yield Config(constants, warps, stages)


def _splits(n: int, k: int, config: Config, target: Target) -> int:
    """Parts of K: as few as leave the last wave of programs nearly full."""
    tiles, slots = math.ceil(n / config.constants["BLOCK_N"]), 2 * target.sms
    options = [s for s in (1, 2, 4, 8) if s == 1 or k >= 4 * s * config.constants["BLOCK_K"]]

    def worth(splits: int) -> float:
        waves = tiles * splits / slots
        return waves / math.ceil(waves) - 0.03 * splits.bit_length()

    return max(options, key=worth)


def _stage_bytes(config: Config, rows: int, size: int, x_size: int) -> int:
    block_n, block_k = config.constants["BLOCK_N"], config.constants["BLOCK_K"]
    return block_k * (block_n * size + rows * x_size)


def _usable(target: Target) -> int:
    """Shared memory for the pipeline, less what an epilogue and a converted x need."""
    return target.shared_bytes - 24 * 1024
