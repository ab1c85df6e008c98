"""Placement by weight and memory: cuts whose slowest stage is fastest, of those that fit.

Costs come from the checkpoint's headers and the devices' profiles, so nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kernels.errors import CapacityError
from model.weights import WeightSource
from pipeline.cuts import StageCosts, best_cuts, least_extra
from pipeline.device_profile import DeviceProfile
from pipeline.modes import LlamaPipelineMode
from pipeline.placement import Placement, StagePlacement
from pipeline.step_cost import Cost, DecodeStep, LoadOptions, PartCosts


@dataclass(frozen=True)
class DeviceLoad:
    """What the stages of one device hold together; `memory_bytes` is None where not known."""

    device: str
    stages: tuple[int, ...]
    needed_bytes: int
    memory_bytes: int | None

    @property
    def lacking_bytes(self) -> int:
        """Bytes that are missing; 0 if all fit."""
        return 0 if self.memory_bytes is None else max(0, self.needed_bytes - self.memory_bytes)


def balanced(
    source: WeightSource,
    placement: Placement,
    profiles: Sequence[DeviceProfile],
    load: LoadOptions,
    step: DecodeStep | None = None,
) -> Placement:
    """The same stages on the same devices, with the layers that make the slowest stage fastest.

    Times are those of `step`, by default a `DecodeStep()`. If no cut fits, the one that lacks least
    on the device that lacks most; `device_loads` tells how much.

    Raises `InvalidInputError` for options that `LlamaStage.load` would refuse.
    """
    if len(placement) == 1:
        return placement
    parts = _parts(source, placement, profiles, load, step or DecodeStep())
    last = len(parts) - 1
    stages = [
        _stage_costs(part, profile.name, source.config.num_hidden_layers, index == 0, index == last)
        for index, (part, profile) in enumerate(zip(parts, profiles, strict=True))
    ]
    memory = {p.name: p.memory_bytes for p in profiles if p.memory_bytes is not None}
    ranges = best_cuts(stages, memory)
    if ranges is None:
        extra = least_extra(stages, memory)
        ranges = best_cuts(stages, {name: most + extra for name, most in memory.items()})
        assert ranges is not None
    places = zip(ranges, placement.stages, strict=True)
    return replace(
        placement,
        stages=tuple(StagePlacement(layers, old.device_ordinal) for layers, old in places),
    )


def stage_costs(
    source: WeightSource,
    placement: Placement,
    profiles: Sequence[DeviceProfile],
    load: LoadOptions,
    step: DecodeStep,
) -> list[Cost]:
    """What each stage of a placement holds, and takes for `step` on its device."""
    last = len(placement) - 1
    parts = _parts(source, placement, profiles, load, step)
    return [
        sum(map(part.layer, stage.layers), part.ends(embed=index == 0, head=index == last))
        for index, (part, stage) in enumerate(zip(parts, placement.stages, strict=True))
    ]


def device_loads(costs: Sequence[Cost], profiles: Sequence[DeviceProfile]) -> list[DeviceLoad]:
    """What each device holds, in the order in which stages first use them."""
    on: dict[str, list[int]] = {}
    for stage, profile in enumerate(profiles):
        on.setdefault(profile.name, []).append(stage)
    return [
        DeviceLoad(
            name,
            tuple(stages),
            sum(costs[stage].nbytes for stage in stages),
            profiles[stages[0]].memory_bytes,
        )
        for name, stages in on.items()
    ]


def imbalance(costs: Sequence[Cost]) -> float:
    """Share of the stages' time, 0 to 1, that is spent waiting for the slowest of them."""
    slowest = max(cost.picoseconds for cost in costs)
    return 1 - sum(cost.picoseconds for cost in costs) / (len(costs) * slowest)


def require_room(placement: Placement, loads: Sequence[DeviceLoad]) -> None:
    """Raise `CapacityError` that names the stages and the bytes that their device lacks."""
    short = [describe_shortage(placement, load) for load in loads if load.lacking_bytes]
    if short:
        raise CapacityError(
            f"no cut into {len(placement)} stages fits; of the best one, {'; '.join(short)}. "
            "Fewer kv_tokens or a smaller dtype take less; splits given by hand, or 'even', are "
            "not checked"
        )


def describe_shortage(placement: Placement, load: DeviceLoad) -> str:
    """ "stage 1 (layers 4-7) on cuda:0 needs 900 bytes and has 800: 100 bytes are missing"."""
    names = ", ".join(
        f"{stage} (layers {layers.start}-{layers.stop - 1})"
        for stage, layers in ((s, placement.stages[s].layers) for s in load.stages)
    )
    several = len(load.stages) > 1
    return (
        f"stage{'s' * several} {names} on {load.device} need{'s' * (not several)} "
        f"{load.needed_bytes} bytes and {'have' if several else 'has'} {load.memory_bytes}: "
        f"{load.lacking_bytes} bytes are missing"
    )


def _parts(
    source: WeightSource,
    placement: Placement,
    profiles: Sequence[DeviceProfile],
    load: LoadOptions,
    step: DecodeStep,
) -> list[PartCosts]:
    """Costs on each stage's device, of which stages that work at once have equal shares."""
    names = [profile.name for profile in profiles]
    in_turn = placement.mode is LlamaPipelineMode.BATCH
    shares = [1 if in_turn else 1 / names.count(name) for name in names]
    return [
        PartCosts(source, profile.scaled(share), load, step)
        for profile, share in zip(profiles, shares, strict=True)
    ]


def _stage_costs(
    parts: PartCosts, device: str, num_layers: int, embed: bool, head: bool
) -> StageCosts:
    layers = [parts.layer(index) for index in range(num_layers)]
    ends = parts.ends(embed=embed, head=head)
    return StageCosts(
        device,
        layer_times=[layer.picoseconds for layer in layers],
        layer_bytes=[layer.nbytes for layer in layers],
        own_time=ends.picoseconds,
        own_bytes=ends.nbytes,
    )
