"""From options to stages: everything that can be wrong about a split is found here, by option."""

from __future__ import annotations

from model.config import LlamaConfig
from pipeline.cli.errors import blaming, usage_error
from pipeline.cli.options import SplitOptions
from pipeline.devices import check_ordinals, parse_ordinals
from pipeline.placement import Placement
from pipeline.splits import parse_splits


def place(
    config: LlamaConfig, split: SplitOptions, mode: str | None, *, here: bool = True
) -> Placement:
    """The placement that the options ask for; with `here`, its devices must be in this machine.

    Raises:
        typer.BadParameter: an option is wrong, or contradicts another.
        UnsupportedError: devices that cannot be had here.
    """
    count = stage_count(split)
    if mode == "overlapped" and count < 2:
        raise usage_error("--mode", mode, "needs at least two stages; give --stages 2 or more")
    ordinals = stage_ordinals(split.devices, count)
    if here and ordinals is not None:
        with blaming("--devices", split.devices):
            check_ordinals(ordinals)
    if split.splits is not None:
        with blaming("--splits", split.splits):
            return Placement.from_splits(config.num_hidden_layers, split.splits, ordinals, mode)
    with blaming("--stages", count):
        return Placement.even(config.num_hidden_layers, count, ordinals, mode)


def stage_count(split: SplitOptions) -> int:
    """How many stages `--splits`, `--stages` and `--devices` agree on; 1 if none is given."""
    if split.splits is not None:
        with blaming("--splits", split.splits):
            count = len(parse_splits(split.splits))
        if split.stages not in (None, count):
            raise usage_error("--stages", split.stages, f"but --splits has {count} parts")
        return count
    if split.stages is not None:
        return split.stages
    return 1 if split.devices is None else split.devices.count(",") + 1


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
