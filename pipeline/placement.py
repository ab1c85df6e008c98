"""Which layers of a model each stage holds, and on which device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kernels.errors import InvalidInputError
from pipeline.modes import LlamaPipelineMode, StageBridge, Transport
from pipeline.splits import Splits, check_ranges, even_ranges, parse_splits


@dataclass(frozen=True)
class StagePlacement:
    """One stage: its half-open layer range, and a CUDA ordinal or None for the default device."""

    layers: range
    device_ordinal: int | None = None

    def describe(self, default_device: str = "cpu") -> str:
        """ "cuda:0:layers=0-39", with inclusive layers."""
        device = default_device if self.device_ordinal is None else f"cuda:{self.device_ordinal}"
        return f"{device}:layers={self.layers.start}-{self.layers.stop - 1}"


@dataclass(frozen=True)
class Placement:
    """The stages of a pipeline in order, and the mode they run in.

    Raises `InvalidInputError` where there is no stage, or "overlapped" is asked of a single one.
    """

    stages: tuple[StagePlacement, ...]
    mode: LlamaPipelineMode
    transport: Transport = Transport.HOST_HIDDEN_BRIDGE

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "mode", LlamaPipelineMode.parse(self.mode))
        if not self.stages:
            raise InvalidInputError("LlamaPipeline requires at least one stage")
        if self.mode is LlamaPipelineMode.OVERLAPPED and len(self.stages) < 2:
            raise InvalidInputError(
                "Llama layer-split overlapped pipeline mode requires at least two stages, got 1"
            )

    @classmethod
    def even(
        cls,
        num_layers: int,
        stages: int,
        ordinals: Sequence[int | None] | None = None,
        mode: LlamaPipelineMode | str | None = None,
    ) -> Placement:
        """Even by layer count; `mode=None` is `LlamaPipelineMode.default_for_stage_count`.

        That is the origin's choice; `LlamaPipeline` and the command take "auto" by default.

        Raises `InvalidInputError` if there are fewer layers than stages.
        """
        return cls._build(even_ranges(num_layers, stages), ordinals, mode)

    @classmethod
    def from_splits(
        cls,
        num_layers: int,
        splits: Splits,
        ordinals: Sequence[int | None] | None = None,
        mode: LlamaPipelineMode | str | None = None,
    ) -> Placement:
        """Layer counts (`[1, 2]`, "1,2"), inclusive ranges ("0-0,1-2") or range objects.

        `mode=None` is as for `even`.

        Raises `InvalidInputError` that names the stage for gaps, overlaps and wrong totals.
        """
        ranges = parse_splits(splits)
        check_ranges(ranges, num_layers)
        return cls._build(ranges, ordinals, mode)

    @classmethod
    def _build(
        cls,
        ranges: Sequence[range],
        ordinals: Sequence[int | None] | None,
        mode: LlamaPipelineMode | str | None,
    ) -> Placement:
        ordinals = [None] * len(ranges) if ordinals is None else list(ordinals)
        if len(ordinals) != len(ranges):
            raise InvalidInputError(
                f"Llama pipeline stage device count {len(ordinals)} must match stage count "
                f"{len(ranges)}"
            )
        pairs = zip(ranges, ordinals, strict=True)
        if mode is None:
            mode = LlamaPipelineMode.default_for_stage_count(len(ranges))
        stages = tuple(StagePlacement(layers, ordinal) for layers, ordinal in pairs)
        return cls(stages, LlamaPipelineMode.parse(mode))

    def with_mode(self, mode: LlamaPipelineMode | str) -> Placement:
        """The same stages in another mode."""
        return replace(self, mode=LlamaPipelineMode.parse(mode))

    @property
    def stage_bridge(self) -> StageBridge:
        """What carries hidden states between the stages."""
        return self.transport.stage_bridge

    @property
    def stage_device_ordinals(self) -> list[int | None]:
        """The CUDA ordinal of each stage; None is the default device."""
        return [stage.device_ordinal for stage in self.stages]

    def __len__(self) -> int:
        return len(self.stages)

    def describe(self, default_device: str = "cpu") -> str:
        """ "stage0:cuda:0:layers=0-39;stage1:cuda:1:layers=40-79"."""
        described = (stage.describe(default_device) for stage in self.stages)
        return ";".join(f"stage{index}:{text}" for index, text in enumerate(described))

    def __str__(self) -> str:
        return self.describe()
