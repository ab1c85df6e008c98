"""From options to stages: everything that can be wrong about a split is found here, by option."""

from __future__ import annotations

import torch

from model.weights import WeightSource
from pipeline.balance import balanced, device_loads, require_room, stage_costs
from pipeline.cli.errors import blaming, usage_error
from pipeline.cli.options import SplitOptions
from pipeline.device_profile import cutting_profiles
from pipeline.devices import check_ordinals, default_device, parse_ordinals
from pipeline.placement import Placement
from pipeline.splits import parse_splits, split_rule
from pipeline.step_cost import DecodeStep, LoadOptions


def place(
    source: WeightSource,
    split: SplitOptions,
    mode: str | None,
    load: LoadOptions,
    *,
    step: DecodeStep | None = None,
    here: bool = True,
) -> Placement:
    """The placement that the options ask for.

    Layers are cut for `step`, by default as loading does, unless `split` says how. With `here`, its
    devices must be in this machine, and what is cut by weight and memory must fit.

    Raises:
        typer.BadParameter: an option is wrong, or contradicts another.
        UnsupportedError: devices that cannot be had here.
        CapacityError: nothing fits.
    """
    count = stage_count(split)
    if mode == "overlapped" and count < 2:
        raise usage_error("--mode", mode, "needs at least two stages; give --stages 2 or more")
    ordinals = stage_ordinals(split.devices, count)
    if here and ordinals is not None:
        with blaming("--devices", split.devices):
            check_ordinals(ordinals)
    rule = split_rule(split.splits)
    if split.splits is not None and rule is None:
        with blaming("--splits", split.splits):
            return Placement.from_splits(
                source.config.num_hidden_layers, split.splits, ordinals, mode
            )
    with blaming("--stages", count):
        placement = Placement.even(source.config.num_hidden_layers, count, ordinals, mode)
    if rule == "even" or count == 1:
        return placement
    profiles = cutting_profiles(stage_devices(placement, load.impl))
    placement = balanced(source, placement, profiles, load, step)
    if here:
        costs = stage_costs(source, placement, profiles, load, DecodeStep())
        require_room(placement, device_loads(costs, profiles))
    return placement


def stage_devices(placement: Placement, impl: str = "auto") -> list[torch.device]:
    """The device of each stage, whether or not it is in this machine."""
    default = default_device(impl)
    return [
        default if ordinal is None else torch.device("cuda", ordinal)
        for ordinal in placement.stage_device_ordinals
    ]


def stage_count(split: SplitOptions) -> int:
    """How many stages `--splits`, `--stages` and `--devices` agree on; 1 if none is given."""
    rule = split_rule(split.splits)
    if split.splits is not None and rule is None:
        with blaming("--splits", split.splits):
            count = len(parse_splits(split.splits))
        if split.stages not in (None, count):
            raise usage_error("--stages", split.stages, f"but --splits has {count} parts")
        return count
    if split.stages is not None:
        return split.stages
    if split.devices is None:
        if rule is not None:
            raise usage_error("--splits", split.splits, "needs --stages or --devices")
        return 1
    return split.devices.count(",") + 1


def stage_ordinals(devices: str | None, count: int) -> list[int | None] | None:
    """The CUDA ordinal of each of `count` stages; one name in `devices` serves them all."""
    if devices is None:
        return None
    with blaming("--devices", devices):
        ordinals = parse_ordinals(devices)
        if len(ordinals) == 1:
            ordinals *= count
        if len(ordinals) != count:
            raise usage_error(
                "--devices",
                devices,
                f"{len(ordinals)} devices for {count} stages; give 1 or {count}",
            )
    return ordinals
