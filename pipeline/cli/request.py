"""All options of a command that shape a pipeline, and what they are called in the library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.cli.options import (
    ComputeOptions,
    ModelOptions,
    PrecisionOptions,
    RunModeOptions,
    SplitOptions,
)
from pipeline.cli.overriding import resolved_impl

ALONE = "host"
"""The bridge of a pipeline that is one process's own, also where torchrun started several."""


@dataclass(frozen=True)
class Request:
    """All options that shape a pipeline."""

    model: ModelOptions
    split: SplitOptions
    mode: RunModeOptions
    compute: ComputeOptions
    precision: PrecisionOptions

    def __post_init__(self) -> None:
        self.mode.check()


def load_options(request: Request) -> dict[str, Any]:
    """What `LlamaPipeline.from_pretrained` is told, but for stages and mode."""
    compute, precision = request.compute, request.precision
    return {
        "groups": request.mode.groups,
        "impl": resolved_impl(compute),
        "bridge": compute.bridge,
        "bridge_dtype": compute.bridge_dtype,
        "threads": compute.threads,
        "dtype": precision.dtype,
        "kv_dtype": precision.kv_dtype,
        "block_size": precision.block_size,
        "kv_tokens": precision.kv_tokens,
        "max_seq_len": precision.max_seq_len,
        "cuda_graphs": compute.cuda_graphs,
    }
