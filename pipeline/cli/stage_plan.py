"""What each stage of a placement will take, worked out from the checkpoint's headers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kernels.dispatch import resolve_impl
from kernels.layout import KVLayout
from model.cache import blocks_for
from model.config import LlamaConfig
from model.stage import default_kv_tokens
from model.stage_weights import resolve_dtype, resolve_kv_dtype
from model.weights import WeightSource, stage_nbytes
from pipeline.cli.errors import usage_error
from pipeline.cli.options import PrecisionOptions
from pipeline.devices import default_device
from pipeline.loading import stage_specs
from pipeline.placement import Placement


@dataclass(frozen=True)
class StagePlan:
    """One stage and its bytes: weights as loaded, KV pools as allocated."""

    stage: int
    device: str
    first_layer: int
    last_layer: int
    embed: bool
    head: bool
    weight_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int


def plan_stages(
    source: WeightSource, placement: Placement, precision: PrecisionOptions
) -> Iterator[StagePlan]:
    """The plan of every stage, in order. Raises what `check_max_seq_len` raises."""
    check_max_seq_len(source.config, precision)
    layout = kv_layout(source, precision)
    blocks = blocks_for(planned_kv_tokens(source.config, precision), precision.block_size)
    for index, (spec, ordinal) in enumerate(
        zip(stage_specs(placement), placement.stage_device_ordinals, strict=True)
    ):
        device = str(default_device("auto")) if ordinal is None else f"cuda:{ordinal}"
        dtype = resolve_dtype(precision.dtype, source.dtype, resolve_impl("auto", device))
        stored = stage_nbytes(source, spec.layers, embed=spec.embed, head=spec.head)
        per_token = layout.bytes_per_token * len(spec.layers)
        yield StagePlan(
            stage=index,
            device=device,
            first_layer=spec.layers.start,
            last_layer=spec.layers.stop - 1,
            embed=spec.embed,
            head=spec.head,
            weight_bytes=stored * dtype.itemsize // source.dtype.itemsize,
            kv_bytes_per_token=per_token,
            kv_bytes=per_token * blocks * precision.block_size,
        )


def kv_layout(source: WeightSource, precision: PrecisionOptions) -> KVLayout:
    """The layout of the KV pools."""
    return KVLayout(
        resolve_kv_dtype(precision.kv_dtype, source.dtype),
        precision.block_size,
        source.config.num_key_value_heads,
        source.config.head_dim,
    )


def planned_kv_tokens(config: LlamaConfig, precision: PrecisionOptions) -> int:
    """Tokens that the KV pools will hold, before rounding up to blocks."""
    if precision.kv_tokens is not None:
        return precision.kv_tokens
    return default_kv_tokens(precision.max_seq_len or config.max_seq_len)


def check_max_seq_len(config: LlamaConfig, precision: PrecisionOptions) -> None:
    """Raise `typer.BadParameter` if `--max-seq-len` is more than the model has positions."""
    if precision.max_seq_len is not None and precision.max_seq_len > config.max_seq_len:
        raise usage_error(
            "--max-seq-len", precision.max_seq_len, f"the model has {config.max_seq_len} positions"
        )
