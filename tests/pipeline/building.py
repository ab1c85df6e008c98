"""Small real pipelines and what tests ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from model.config import LlamaConfig
from model.parity_weights import ParityWeights
from model.stage import LlamaStage, StageSpec
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.loading import stage_specs
from pipeline.modes import LlamaPipelineMode
from pipeline.placement import Placement
from pipeline.worker import StageWorker


def parity_config(num_layers: int = 3) -> LlamaConfig:
    """The tiny model of the origin's tests."""
    return LlamaConfig(
        hidden_size=4,
        intermediate_size=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=2,
        num_hidden_layers=num_layers,
        vocab_size=7,
        max_position_embeddings=16,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
    )


def parity_stages(
    splits: Sequence[int], config: LlamaConfig | None = None, **options: Any
) -> list[LlamaStage]:
    """Stages of so many layers each, with the origin's weights."""
    config = config or parity_config(sum(splits))
    placement = Placement.from_splits(config.num_hidden_layers, splits)
    source = ParityWeights(config)
    return [LlamaStage.load(source, spec, **options) for spec in stage_specs(placement)]


def parity_pipeline(
    splits: Sequence[int] = (1, 2),
    *,
    mode: LlamaPipelineMode | str | None = None,
    threads: int = 1,
    **options: Any,
) -> LlamaPipeline:
    """A pipeline of the origin's model; options are those of `LlamaStage.load`."""
    stages = parity_stages(splits, **options)
    placement = Placement.from_splits(sum(splits), list(splits), mode=mode)
    return LlamaPipeline(stages, placement, threads=threads)


def load_stage(layers: range, *, embed: bool, head: bool, config: LlamaConfig) -> LlamaStage:
    """One stage, also such as no placement makes."""
    return LlamaStage.load(ParityWeights(config), StageSpec(layers, embed=embed, head=head))


def close(expected: torch.Tensor, actual: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Whether the largest difference is below `tolerance`; NaN is not."""
    return bool((expected.double() - actual.double()).abs().max() < tolerance)


def footprint(pipeline: LlamaPipeline) -> list[tuple[dict[str, int], int]]:
    """Per stage: the length of every sequence, and the blocks that are free."""
    return [
        ({i: stage.cache.cache_len(i) for i in stage.cache.sequence_ids()}, stage.cache.free_blocks)
        for stage in pipeline.stages
    ]


def workers_of(pipeline: LlamaPipeline) -> list[StageWorker]:
    """The workers of a pipeline's threads."""
    return pipeline._engine.line._crew.all_workers()
