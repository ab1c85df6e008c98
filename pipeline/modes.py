"""Names of the pipeline's modes, transports and stage bridges, as options spell them."""

from __future__ import annotations

from enum import StrEnum

from kernels.errors import InvalidInputError, UnsupportedError


class LlamaPipelineMode(StrEnum):
    """How decode steps flow through the stages."""

    BATCH = "batch"  # one step at a time, the stages in turn
    OVERLAPPED = "overlapped"  # one step at a time, cut into microbatches that overlap
    CONTINUOUS = "continuous"  # groups of sequences, each with a step of its own under way
    AUTO = "auto"  # whichever of these a cost model, fitted to measurements, predicts is fastest

    @classmethod
    def parse(cls, text: object) -> LlamaPipelineMode:
        """The mode named by `text`, whatever its case and surrounding space.

        Raises `InvalidInputError` that quotes any other value.
        """
        must = "layer_split_pipeline_mode must be batch, overlapped, continuous or auto"
        if not isinstance(text, str):
            raise InvalidInputError(f"{must}, got {text!r}")
        name = text.strip().lower()
        try:
            return cls(name)
        except ValueError:
            raise InvalidInputError(f'{must}, got "{name}"') from None

    @classmethod
    def default_for_stage_count(cls, stage_count: int) -> LlamaPipelineMode:
        """The origin's choice of two: overlapped for two stages, batch for any other number."""
        return cls.OVERLAPPED if stage_count == 2 else cls.BATCH


class StageBridge(StrEnum):
    """What carries a hidden state from one stage to the next."""

    HOST = "host"
    CUDA_PEER = "cuda_peer"
    CUDA_DEVICE_STAGED = "cuda_device_staged"
    DISTRIBUTED = "distributed"


class Transport(StrEnum):
    """The kind of hand-over that a placement asks for."""

    HOST_HIDDEN_BRIDGE = "host-hidden-bridge"
    CUDA_PEER_HIDDEN_BRIDGE = "cuda-peer-hidden-bridge"
    CUDA_DEVICE_STAGED_HIDDEN_BRIDGE = "cuda-device-staged-hidden-bridge"
    DISTRIBUTED_HIDDEN_BRIDGE = "distributed-hidden-bridge"

    @classmethod
    def of(cls, bridge: StageBridge) -> Transport:
        """The transport that a bridge serves."""
        return cls[f"{bridge.name}_HIDDEN_BRIDGE"]

    @property
    def stage_bridge(self) -> StageBridge:
        """The bridge that serves this transport."""
        return StageBridge[self.name.removesuffix("_HIDDEN_BRIDGE")]


def parse_bridge(name: str) -> StageBridge | None:
    """The bridge of that name; None for "auto", which the stages' devices decide.

    Raises `InvalidInputError` for an unknown name.
    """
    if name == "auto":
        return None
    known = [bridge.value for bridge in StageBridge]
    if name not in known:
        raise InvalidInputError(f"bridge is {name!r}; expected auto or one of {known}")
    return StageBridge(name)


def parse_local_bridge(name: str) -> StageBridge | None:
    """As `parse_bridge`, for stages of one process.

    Raises `UnsupportedError` for the bridge between processes, and `InvalidInputError` for an
    unknown name.
    """
    bridge = parse_bridge(name)
    if bridge is StageBridge.DISTRIBUTED:
        raise UnsupportedError(
            f"bridge {name!r} needs the processes of torchrun, one for each stage, and this is one "
            "process; start it as 'torchrun --nproc-per-node 2', or use 'host' or 'auto'"
        )
    return bridge
