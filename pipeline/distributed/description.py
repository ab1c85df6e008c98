"""What every rank tells the driver of its stage, and whether all of them make one model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from kernels.errors import InvalidInputError
from kernels.layout import KVLayout
from model.config import LlamaConfig
from model.stage import StageSpec
from pipeline.interfaces import Stage
from pipeline.ledger import Room


@dataclass(frozen=True)
class RemoteStage:
    """A stage in another process, as far as the driver needs to know it."""

    config: LlamaConfig
    spec: StageSpec
    impl: str
    device: torch.device
    dtype: torch.dtype
    layout: KVLayout


def describe(stage: Stage, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """All about a rank's stage, ready for JSON. `options` are those that all ranks must share."""
    layers = stage.spec.layers
    return {
        "config": {name: _plain(value) for name, value in asdict(stage.config).items()},
        "options": options,
        "dtype": str(stage.dtype),
        "layout": asdict(stage.layout),
        "layers": [layers.start, layers.stop],
        "impl": stage.impl,
        "device": str(stage.device),
        "threads": threads,
        "room": asdict(room_of(stage)),
    }


def room_of(stage: Stage) -> Room:
    """Size of a stage's cache."""
    return Room(stage.layout.block_size, stage.cache.num_blocks, stage.cache.max_seq_len)


def check_agreement(told: list[dict[str, Any]], hosts: list[str]) -> None:
    """Raise `InvalidInputError` that names the rank and what differs from rank 0's."""
    first = told[0]
    for rank, other in enumerate(told[1:], 1):
        for part in ("config", "options", "dtype", "layout"):
            for name, expected, got in _differences(part, first[part], other[part]):
                raise InvalidInputError(
                    f"the ranks do not agree: {name} of rank {rank} (host {hosts[rank]}) is "
                    f"{got!r}, of rank 0 (host {hosts[0]}) it is {expected!r}"
                )


def remote_stage(told: dict[str, Any], config: LlamaConfig, last: bool) -> RemoteStage:
    """The stage that another rank than the first described; its `config` is the driver's."""
    return RemoteStage(
        config,
        StageSpec(range(*told["layers"]), embed=False, head=last),
        told["impl"],
        torch.device(told["device"]),
        getattr(torch, told["dtype"].removeprefix("torch.")),
        KVLayout(**told["layout"]),
    )


def _differences(part: str, first: Any, other: Any) -> list[tuple[str, Any, Any]]:
    """(name, one value, the other) wherever they differ."""
    if not isinstance(first, dict):
        return [] if first == other else [(part, first, other)]
    names = [*first, *(name for name in other if name not in first)]
    return [
        (f"{part}.{name}", first.get(name), other.get(name))
        for name in names
        if first.get(name) != other.get(name)
    ]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)
