"""Whether some stages make up one model, placed as said; asked when a pipeline is built."""

from __future__ import annotations

from collections.abc import Sequence

from kernels.errors import InvalidInputError, UnsupportedError
from pipeline.devices import check_ordinals
from pipeline.interfaces import Stage
from pipeline.modes import LlamaPipelineMode
from pipeline.placement import Placement, StagePlacement
from pipeline.splits import check_ranges

_SHARED = (
    "hidden_size",
    "vocab_size",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "num_hidden_layers",
)


def placement_of(stages: Sequence[Stage]) -> Placement:
    """The stages as they are, on the devices they are on, in mode "auto"."""
    if not stages:
        raise InvalidInputError("LlamaPipeline requires at least one stage")
    ordinals = [stage.device.index if stage.device.type == "cuda" else None for stage in stages]
    ranges = [stage.spec.layers for stage in stages]
    check_ranges(ranges, stages[0].config.num_hidden_layers)
    layers = stages[0].config.num_hidden_layers
    return Placement.from_splits(layers, ranges, ordinals, LlamaPipelineMode.AUTO)


def check_stages(stages: Sequence[Stage], placement: Placement) -> None:
    """Raise unless `stages` are one whole model, in order, and `placement` is theirs.

    Raises:
        InvalidInputError: names the stage, what it has and what was expected.
        UnsupportedError: device ordinals where device-scoped execution is not to be had.
    """
    if not stages:
        raise InvalidInputError("LlamaPipeline requires at least one stage")
    if len(placement) != len(stages):
        raise InvalidInputError(
            f"Llama pipeline stage device count {len(placement)} must match stage count "
            f"{len(stages)}"
        )
    _check_devices(stages, placement.stages)
    if not stages[0].spec.embed:
        raise InvalidInputError("first Llama pipeline stage must load embedding weights")
    if not stages[-1].spec.head:
        raise InvalidInputError("last Llama pipeline stage must load lm_head weights")
    _check_dimensions(stages)
    ranges = [stage.spec.layers for stage in stages]
    check_ranges(ranges, stages[0].config.num_hidden_layers)
    for index, (have, placed) in enumerate(zip(ranges, placement.stages, strict=True)):
        if have != placed.layers:
            raise InvalidInputError(
                f"Llama pipeline stage {index} holds layers {have.start}-{have.stop - 1}, but its "
                f"placement says {placed.layers.start}-{placed.layers.stop - 1}"
            )


def _check_devices(stages: Sequence[Stage], placed: Sequence[StagePlacement]) -> None:
    ordinals = [stage.device_ordinal for stage in placed]
    for index, (stage, ordinal) in enumerate(zip(stages, ordinals, strict=True)):
        check_ordinals(ordinals, stage.impl)
        if ordinal is not None and stage.device.type != "cuda":
            raise UnsupportedError(
                "Llama layer-split pipeline requested explicit backend device ordinals "
                f"{ordinals}, but stage {index} is on {stage.device}, which does not support "
                "device-scoped execution"
            )
        if ordinal is not None and stage.device.index != ordinal:
            raise InvalidInputError(
                f"stage {index} is on {stage.device}, but its placement says cuda:{ordinal}"
            )


def _check_dimensions(stages: Sequence[Stage]) -> None:
    first = stages[0].config
    for index, stage in enumerate(stages[1:], start=1):
        for name in _SHARED:
            expected, got = getattr(first, name), getattr(stage.config, name)
            if got != expected:
                raise InvalidInputError(
                    "Llama pipeline stages must share runtime dimensions: "
                    f"{name} of stage {index} is {got}, of stage 0 it is {expected}"
                )
