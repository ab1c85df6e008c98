"""The pieces of a pipeline from a checkpoint: placement, workers, stages and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from kernels.errors import InvalidInputError
from model.bundled_model import bundled_model_path
from model.checkpoint import Checkpoint
from model.stage import LlamaStage, Progress, StageSpec
from model.tokenizer import Tokenizer
from model.weights import WeightSource
from pipeline.balance import balanced, device_loads, require_room, stage_costs
from pipeline.bridges.opening import check_bridge
from pipeline.crew import Crew
from pipeline.device_profile import cutting_profiles
from pipeline.devices import parse_ordinals, resolve_devices
from pipeline.modes import LlamaPipelineMode
from pipeline.placement import Placement
from pipeline.splits import Splits, split_rule
from pipeline.step_cost import DecodeStep, LoadOptions

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Pieces:
    """What a `LlamaPipeline` is made of."""

    placement: Placement
    stages: tuple[LlamaStage, ...]
    crew: Crew
    tokenizer: Tokenizer | None


def load_pieces(
    path: str | PathLike[str] | None,
    *,
    stages: int | None,
    splits: Splits | None,
    devices: Sequence[int | None] | str | None,
    mode: LlamaPipelineMode | str | None,
    impl: str,
    threads: int | Sequence[int] | None,
    bridge: str,
    bridge_dtype: str,
    progress: Progress | None,
    stage_options: dict[str, Any],
) -> Pieces:
    """Open a checkpoint and load its stages, one after the other, each in its worker.

    See `LlamaPipeline.from_pretrained` for the arguments; `stage_options` go to
    `LlamaStage.load`. If anything fails, no worker stays behind.
    """
    folder = Path(bundled_model_path() if path is None else path).expanduser()
    checkpoint = Checkpoint.open(folder)
    load = LoadOptions.among({"impl": impl, **stage_options})
    placement = place(checkpoint, stages, splits, devices, mode, load)
    placed_on = resolve_devices(placement.stage_device_ordinals, impl)
    check_bridge(bridge, placed_on, bridge_dtype)
    crew = Crew.of(placement.mode, len(placement), threads)
    try:
        loaded = load_stages(
            checkpoint, placement, placed_on, crew, impl=impl, progress=progress, **stage_options
        )
        has_tokenizer = (folder / TOKENIZER_FILE).exists()
        tokenizer = Tokenizer.load(folder) if has_tokenizer else None
    except BaseException:
        crew.close()
        raise
    return Pieces(placement, loaded, crew, tokenizer)


def place(
    source: WeightSource,
    stages: int | None = None,
    splits: Splits | None = None,
    devices: Sequence[int | None] | str | None = None,
    mode: LlamaPipelineMode | str | None = None,
    load: LoadOptions | None = None,
) -> Placement:
    """The placement that the options of `from_pretrained` ask for.

    Without splits, or with "auto", layers are cut by weight and memory, see `balanced`; "even"
    cuts by layer count.

    Raises:
        InvalidInputError: options contradict each other, or one is wrong.
        UnsupportedError: devices that cannot be had here.
        CapacityError: cut by weight and memory, nothing fits.
    """
    num_layers = source.config.num_hidden_layers
    ordinals = parse_ordinals(devices) if isinstance(devices, str) else devices
    rule = split_rule(splits)
    if splits is not None and rule is None:
        placement = Placement.from_splits(num_layers, splits, ordinals, mode)
        if stages is not None and stages != len(placement):
            raise InvalidInputError(
                f"stages is {stages}, but splits {splits!r} make {len(placement)} stages"
            )
        return placement
    if stages is None:
        if ordinals is None and rule is not None:
            raise InvalidInputError(f"splits are {splits!r}; expected stages or devices beside it")
        stages = 1 if ordinals is None else len(ordinals)
    placement = Placement.even(num_layers, stages, ordinals, mode)
    if rule == "even" or stages == 1:
        return placement
    load = load or LoadOptions()
    placed_on = resolve_devices(placement.stage_device_ordinals, load.impl)
    profiles = cutting_profiles(placed_on)
    placement = balanced(source, placement, profiles, load)
    costs = stage_costs(source, placement, profiles, load, DecodeStep())
    require_room(placement, device_loads(costs, profiles))
    return placement


def stage_specs(placement: Placement) -> list[StageSpec]:
    """What each stage loads: its layers, the embedding if it is first, the head if it is last."""
    last = len(placement) - 1
    return [
        StageSpec(stage.layers, embed=index == 0, head=index == last)
        for index, stage in enumerate(placement.stages)
    ]


def load_stages(
    source: WeightSource,
    placement: Placement,
    devices: Sequence[torch.device],
    crew: Crew,
    **options: Any,
) -> tuple[LlamaStage, ...]:
    """Load every stage in its worker, one at a time, so that only one has temporary copies."""

    def load(spec: StageSpec, device: torch.device) -> LlamaStage:
        return LlamaStage.load(source, spec, device=device, **options)

    loaded = []
    for index, spec in enumerate(stage_specs(placement)):
        loaded.append(crew.submit(index, partial(load, spec, devices[index])).result())
    return tuple(loaded)
