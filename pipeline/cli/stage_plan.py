"""What each stage of a placement will take, worked out from the checkpoint's headers."""

from __future__ import annotations

from dataclasses import dataclass

from model.config import LlamaConfig
from model.stage import cache_sizes
from model.weights import WeightSource
from pipeline.balance import DeviceLoad, device_loads, imbalance, stage_costs
from pipeline.cli.errors import usage_error
from pipeline.cli.options import PrecisionOptions
from pipeline.cli.placing import stage_devices
from pipeline.device_profile import DeviceProfile, device_profile
from pipeline.loading import stage_specs
from pipeline.placement import Placement
from pipeline.step_cost import DecodeStep, LoadOptions, kv_layout


@dataclass(frozen=True)
class StagePlan:
    """One stage: its bytes, weights as loaded and KV pools as allocated, and its predicted time."""

    stage: int
    device: str
    first_layer: int
    last_layer: int
    embed: bool
    head: bool
    weight_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    workspace_bytes: int
    seconds: float


@dataclass(frozen=True)
class PlacementPlan:
    """The stages of a placement, and what they ask of their devices."""

    placement: Placement
    stages: tuple[StagePlan, ...]
    devices: tuple[DeviceLoad, ...]
    profiles: tuple[DeviceProfile, ...]  # one per device
    imbalance: float
    kv_dtype: str
    kv_tokens: int

    @property
    def slowest(self) -> int:
        """Index of the slowest stage, the first of several."""
        times = [stage.seconds for stage in self.stages]
        return times.index(max(times))

    @property
    def stage_profiles(self) -> list[DeviceProfile]:
        """The device of each stage."""
        by_name = {profile.name: profile for profile in self.profiles}
        return [by_name[stage.device] for stage in self.stages]

    @property
    def fits(self) -> bool:
        """Whether every device has memory for its stages, as far as that is known."""
        return not any(device.lacking_bytes for device in self.devices)


def make_plan(
    source: WeightSource, placement: Placement, load: LoadOptions, step: DecodeStep
) -> PlacementPlan:
    """The plan of a placement, on devices of this or of another machine."""
    profiles = [device_profile(device) for device in stage_devices(placement)]
    costs = stage_costs(source, placement, profiles, load, step)
    layout = kv_layout(source, load)
    kv_tokens, _ = cache_sizes(source.config, load.block_size, load.kv_tokens, load.max_seq_len)
    stages = tuple(
        StagePlan(
            stage=index,
            device=profile.name,
            first_layer=spec.layers.start,
            last_layer=spec.layers.stop - 1,
            embed=spec.embed,
            head=spec.head,
            weight_bytes=cost.weight_bytes,
            kv_bytes_per_token=layout.bytes_per_token * len(spec.layers),
            kv_bytes=cost.kv_bytes,
            workspace_bytes=cost.workspace_bytes,
            seconds=cost.seconds,
        )
        for index, (spec, profile, cost) in enumerate(
            zip(stage_specs(placement), profiles, costs, strict=True)
        )
    )
    loads = device_loads(costs, profiles)
    return PlacementPlan(
        placement,
        stages,
        tuple(loads),
        tuple(profiles[device.stages[0]] for device in loads),
        imbalance(costs),
        layout.dtype,
        kv_tokens,
    )


def check_max_seq_len(config: LlamaConfig, precision: PrecisionOptions) -> None:
    """Raise `typer.BadParameter` if `--max-seq-len` is more than the model has positions."""
    if precision.max_seq_len is not None and precision.max_seq_len > config.max_seq_len:
        raise usage_error(
            "--max-seq-len", precision.max_seq_len, f"the model has {config.max_seq_len} positions"
        )
