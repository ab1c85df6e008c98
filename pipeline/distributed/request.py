"""What every rank is asked to load; the options of `LlamaPipeline.from_pretrained`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from kernels.errors import InvalidInputError
from model.bundled_model import bundled_model_path
from model.stage import Progress
from pipeline.devices import default_device, parse_ordinals
from pipeline.distributed.world import World
from pipeline.modes import LlamaPipelineMode
from pipeline.splits import Splits, parse_splits, split_rule


@dataclass(frozen=True)
class LoadRequest:
    """See `LlamaPipeline.from_pretrained`; all ranks must be given the same."""

    path: str | PathLike[str] | None = None
    stages: int | None = None
    splits: Splits | None = None
    devices: Sequence[int | None] | str | None = None
    kv_dtype: str = "auto"
    mode: LlamaPipelineMode | str | None = None
    impl: str = "auto"
    bridge: str = "auto"
    bridge_dtype: str = "fp32"
    groups: int | None = None
    threads: int | Sequence[int] | None = None
    dtype: str = "auto"
    block_size: int = 16
    kv_tokens: int | None = None
    max_seq_len: int | None = None
    cuda_graphs: bool = True
    progress: Progress | None = None

    @property
    def folder(self) -> Path:
        """Of the checkpoint."""
        return Path(bundled_model_path() if self.path is None else self.path).expanduser()

    @property
    def stage_options(self) -> dict[str, Any]:
        """Those of `LlamaStage.load` that all ranks must share."""
        return {
            "kv_dtype": self.kv_dtype,
            "dtype": self.dtype,
            "block_size": self.block_size,
            "kv_tokens": self.kv_tokens,
            "max_seq_len": self.max_seq_len,
            "cuda_graphs": self.cuda_graphs,
        }

    def check_count(self, world: World) -> None:
        """Raise `InvalidInputError` unless there are as many stages as processes."""
        count = self.stages
        if self.splits is not None and split_rule(self.splits) is None:
            count = len(parse_splits(self.splits))
        if count is not None and count != world.size:
            raise InvalidInputError(
                f"{count} stages were asked for, but torchrun started {world.size} processes; "
                "each runs one stage"
            )

    def ordinals(self, world: World) -> list[int | None]:
        """The CUDA ordinal of each rank; by default, where there are GPUs, each one's own."""
        if self.devices is not None:
            devices = self.devices
            given = parse_ordinals(devices) if isinstance(devices, str) else list(devices)
            if len(given) != world.size:
                raise InvalidInputError(
                    f"devices are {devices!r}; expected one for each of {world.size} processes"
                )
            return given
        if default_device(self.impl).type != "cuda":
            return [None] * world.size
        return [rank % world.local_size for rank in range(world.size)]

    def threads_of(self, world: World) -> int:
        """Intra-op threads of this rank's stage."""
        if self.threads is None:
            return world.threads()
        if isinstance(self.threads, int):
            return self.threads
        given = list(self.threads)
        if len(given) != world.size:
            raise InvalidInputError(
                f"threads has {len(given)} numbers for {world.size} stages; expected one per stage"
            )
        return given[world.rank]
