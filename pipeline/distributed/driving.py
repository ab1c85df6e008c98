"""What a `LlamaPipeline` on rank 0 is made of, when its other stages are in other processes."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.errors import InvalidInputError
from model.stage import LlamaStage
from model.tokenizer import Tokenizer
from pipeline.distributed.description import RemoteStage, remote_stage
from pipeline.distributed.joining import join
from pipeline.distributed.line import DistributedLine
from pipeline.distributed.request import LoadRequest
from pipeline.distributed.world import World
from pipeline.errors import RankLostError
from pipeline.ledger import Ledger, Room
from pipeline.loading import TOKENIZER_FILE
from pipeline.modes import StageBridge, parse_bridge
from pipeline.placement import Placement
from pipeline.timeline import Recorder


@dataclass(frozen=True)
class Driving:
    """The driver's part."""

    line: DistributedLine
    ledger: Ledger
    stages: tuple[LlamaStage | RemoteStage, ...]
    placement: Placement
    recorder: Recorder
    tokenizer: Tokenizer | None


def world_for(bridge: str) -> World | None:
    """The world that a pipeline with such a bridge runs in; None for this process alone.

    Raises `InvalidInputError` in another process than the driver's.
    """
    asked = parse_bridge(bridge)
    if asked not in (None, StageBridge.DISTRIBUTED):
        return None
    world = World.of_environment()
    if world is not None and not world.drives:
        raise InvalidInputError(
            f"rank {world.rank} of {world.size} has a stage, and rank 0 the pipeline; call "
            "pipeline.distributed.serve with the same options here"
        )
    return world


def drive(world: World, request: LoadRequest) -> Driving:
    """Join the other ranks as their driver. Raises what is wrong on any of them."""
    tokenizer, failed = None, None
    try:  # before there is a heartbeat, which reading a large one would hold up
        if (request.folder / TOKENIZER_FILE).exists():
            tokenizer = Tokenizer.load(request.folder)
    except Exception as error:
        failed = error
    member = join(world, request, _nobody_waits_yet, failed)
    try:
        last = world.size - 1
        others = [
            remote_stage(told, member.stage.config, last=rank == last)
            for rank, told in enumerate(member.told)
        ]
        return Driving(
            DistributedLine(member),
            Ledger([Room(**told["room"]) for told in member.told]),
            (member.stage, *others[1:]),
            member.placement,
            member.recorder,
            tokenizer,
        )
    except BaseException:
        member.crew.close()
        member.heart.leave()
        raise


def _nobody_waits_yet(error: RankLostError) -> None:
    """While the ranks join, whoever waits asks the heartbeat."""
