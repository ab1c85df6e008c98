"""How a rank becomes part of a distributed pipeline: meet, load, compare, connect, probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed

from kernels.errors import LamellaError, UnsupportedError
from model.checkpoint import Checkpoint
from model.stage import LlamaStage
from pipeline.bridges.opening import check_bridge
from pipeline.crew import Crew
from pipeline.devices import resolve_devices
from pipeline.distributed.answers import AnswerSender
from pipeline.distributed.board import Board, patiently
from pipeline.distributed.channels import Channels, open_channels
from pipeline.distributed.clocks import measure_offsets
from pipeline.distributed.description import check_agreement, describe
from pipeline.distributed.heartbeat import TIMEOUT, Heartbeat, timeout_seconds
from pipeline.distributed.links import ReceiveLink, SendLink
from pipeline.distributed.mesh import Mesh, connect
from pipeline.distributed.ports import ReceivePort, SendPort
from pipeline.distributed.probing import probe_links
from pipeline.distributed.rank_loop import RankLoop
from pipeline.distributed.request import LoadRequest
from pipeline.distributed.world import World
from pipeline.errors import RankLostError
from pipeline.loading import place, stage_specs
from pipeline.modes import LlamaPipelineMode
from pipeline.placement import Placement
from pipeline.step_cost import LoadOptions
from pipeline.timeline import Recorder

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Member:
    """A rank that is ready.

    Args:
        stage: this rank's.
        hosts: name of every rank's machine.
        told: every rank's description of its stage, see `describe`; the driver alone has it.
        offsets: nanoseconds that every rank's clock is ahead of the driver's, known to the driver.
    """

    world: World
    request: LoadRequest
    epoch: int
    hosts: list[str]
    heart: Heartbeat
    placement: Placement
    stage: LlamaStage
    crew: Crew
    channels: Channels
    loop: RankLoop
    recorder: Recorder
    told: list[dict[str, Any]]
    offsets: list[int]


def join(
    world: World,
    request: LoadRequest,
    on_loss: Callable[[RankLostError], None],
    failed: Exception | None = None,
) -> Member:
    """Join the other ranks, who all call this.

    Args:
        world, request: of this rank.
        on_loss: told when a rank is lost.
        failed: what this rank failed in already, so that all hear of it.

    Raises what is wrong on any rank, on all of them.
    """
    if not torch.distributed.is_available():
        raise UnsupportedError("this PyTorch was built without torch.distributed")
    timeout = TIMEOUT
    try:
        request.check_count(world)
        # Nobody is asked for memory or devices of other machines.
        check_bridge("host", [torch.device("cpu")] * world.size, request.bridge_dtype)
        timeout = timeout_seconds()
    except LamellaError as error:  # the others hear of it, too
        failed = failed or error
    everyone = world.open_store()
    heart = None
    try:
        meeting = torch.distributed.PrefixStore("lamella", everyone)
        address = world.own_address(meeting)
        mesh = connect(world, meeting, address)
        heart = Heartbeat(mesh, timeout, on_loss)
        store = torch.distributed.PrefixStore(f"lamella/{mesh.epoch}", everyone)
        return _Joining(world, request, mesh, heart, store, failed).run(address)
    except BaseException as error:
        if heart is not None:
            heart.leave()
        if isinstance(error, torch.distributed.DistError):
            raise LamellaError(f"the ranks' store is gone, and with it a rank: {error}") from error
        raise


class _Joining:
    """The steps; each is done by all ranks, and whatever fails on one of them ends all."""

    def __init__(
        self,
        world: World,
        request: LoadRequest,
        mesh: Mesh,
        heart: Heartbeat,
        store: Store,
        failed: Exception | None,
    ) -> None:
        self.world = world
        self.request = request
        self.mesh = mesh
        self.heart = heart
        self.store = store
        self.failed = failed
        self.board = Board(store, heart)

    def run(self, address: str) -> Member:
        checkpoint, placed = self._together("place", self._open, _first, self._place)
        placement = _placement(checkpoint, placed)
        crew = Crew.of(LlamaPipelineMode.BATCH, 1, self.request.threads_of(self.world))
        try:
            stage, agreed = self._together(
                "load",
                partial(self._load, checkpoint, placement, crew),
                self._compare,
                partial(self._describe, threads=crew.threads[0]),
            )
            recorder = Recorder(self.world.size)
            (channels, loop), _ = self._together(
                "connect",
                partial(self._connect, address, stage, agreed["nccl"], recorder),
                _nothing,
                _nothing,
            )
            offsets = patiently(self.heart, partial(measure_offsets, self.world, channels))
            self.heart.all_ready()
        except BaseException:
            crew.close()
            raise
        return Member(
            self.world, self.request, self.mesh.epoch, self.mesh.hosts, self.heart, placement,
            stage, crew, channels, loop, recorder, agreed["told"], offsets,
        )  # fmt: skip

    def _together(
        self,
        name: str,
        work: Callable[[], T],
        decide: Callable[[list[Any]], Any],
        tell: Callable[[T], Any] | None = None,
    ) -> tuple[T, Any]:
        """Do something on all ranks: what came of it here, and what the driver made of all.

        Args:
            name: of the step.
            work: the step.
            decide: makes the decision from what all ranks told, on the driver.
            tell: what this rank tells of its outcome; by default the outcome.
        """
        failed: Exception | None = None
        try:
            value = work()
            mine = {"told": value if tell is None else tell(value)}
        except RankLostError:
            raise
        except Exception as error:
            failed = error
            mine = {"error": _words(error)}
        self.board.post(f"{name}/{self.world.rank}", mine)
        if self.world.drives:
            self.board.post(f"{name}/decision", self._decision(name, decide))
        decision = self.board.read(f"{name}/decision")
        if failed is not None:
            raise failed
        if "error" in decision:
            raise LamellaError(decision["error"])
        return value, decision["made"]

    def _decision(self, name: str, decide: Callable[[list[Any]], Any]) -> dict[str, Any]:
        notes = [self.board.read(f"{name}/{rank}") for rank in range(self.world.size)]
        for rank, note in enumerate(notes):
            if "error" in note:
                host = self.mesh.hosts[rank]
                return {"error": f"rank {rank} (host {host}) failed to start: {note['error']}"}
        try:
            return {"made": decide([note["told"] for note in notes])}
        except LamellaError as error:
            return {"error": str(error)}

    def _open(self) -> Checkpoint:
        if self.failed is not None:
            raise self.failed
        return Checkpoint.open(self.request.folder)

    def _place(self, checkpoint: Checkpoint) -> dict[str, Any] | None:
        """Where the stages go, which the driver alone decides."""
        if not self.world.drives:
            return None
        request = self.request
        placement = place(
            checkpoint,
            self.world.size if request.splits is None else request.stages,
            request.splits,
            request.ordinals(self.world),
            LlamaPipelineMode.AUTO if request.mode is None else request.mode,
            LoadOptions.among({"impl": request.impl, **request.stage_options}),
        )
        return {
            "layers": [[one.layers.start, one.layers.stop] for one in placement.stages],
            "ordinals": placement.stage_device_ordinals,
            "mode": placement.mode.value,
        }

    def _load(self, checkpoint: Checkpoint, placement: Placement, crew: Crew) -> LlamaStage:
        """This rank's stage, loaded in its worker."""
        rank = self.world.rank
        ordinal = placement.stage_device_ordinals[rank]
        load = partial(
            LlamaStage.load,
            checkpoint,
            stage_specs(placement)[rank],
            device=resolve_devices([ordinal], self.request.impl)[0],
            impl=self.request.impl,
            progress=self.request.progress,
            **self.request.stage_options,
        )
        return crew.submit(0, load).result()

    def _describe(self, stage: LlamaStage, threads: int) -> dict[str, Any]:
        nccl = stage.device.type == "cuda" and torch.distributed.is_nccl_available()
        shared = self.request.stage_options | {"bridge_dtype": self.request.bridge_dtype}
        return describe(stage, threads, shared) | {"nccl": nccl}

    def _compare(self, told: list[dict[str, Any]]) -> dict[str, Any]:
        check_agreement(told, self.mesh.hosts)
        # NCCL wants a GPU for each rank.
        places = {(h, one["device"]) for h, one in zip(self.mesh.hosts, told, strict=True)}
        nccl = len(places) == len(told) and all(one["nccl"] for one in told)
        return {"told": told, "nccl": nccl}

    def _connect(
        self, address: str, stage: LlamaStage, nccl: bool, recorder: Recorder
    ) -> tuple[Channels, RankLoop]:
        """Connect, and probe the links."""
        channels = patiently(
            self.heart, partial(open_channels, self.world, self.store, address, nccl=nccl)
        )
        loop = self._loop(channels, stage, nccl, recorder)
        patiently(
            self.heart,
            partial(
                probe_links,
                loop.link_in,
                loop.link_out,
                self.world.rank,
                self.world.size,
                stage.config.hidden_size,
                stage.device,
            ),
        )
        return channels, loop

    def _loop(
        self, channels: Channels, stage: LlamaStage, nccl: bool, recorder: Recorder
    ) -> RankLoop:
        rank, size, epoch = self.world.rank, self.world.size, self.mesh.epoch
        width, dtype = stage.config.hidden_size, _DTYPES[self.request.bridge_dtype]
        suspect, cpu = self.heart.suspect, torch.device("cpu")
        device = stage.device if nccl else cpu
        link_in = link_out = answers = None
        if channels.before is not None:
            receive = ReceivePort(channels.before, 0, rank - 1, size, device, suspect)
            link_in = ReceiveLink(receive, width, dtype, epoch, rank, stage.device)
        if channels.after is not None:
            send = SendPort(channels.after, 1, rank + 1, size, device, suspect)
            own = None if self.world.drives else recorder
            link_out = SendLink(send, width, dtype, epoch, rank, own)
        else:
            back = SendPort(channels.answers, 0, 0, size, cpu, suspect)
            answers = AnswerSender(back, stage.config.vocab_size, epoch, rank, recorder)
        return RankLoop(rank, stage, link_in, link_out, answers, recorder)


def _placement(checkpoint: Checkpoint, placed: dict[str, Any]) -> Placement:
    ranges = [range(*layers) for layers in placed["layers"]]
    layers = checkpoint.config.num_hidden_layers
    return Placement.from_splits(layers, ranges, placed["ordinals"], placed["mode"])


def _first(notes: list[Any]) -> Any:
    return notes[0]


def _nothing(_: Any) -> None:
    return None


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, LamellaError) else f"{type(error).__name__}: {text}"
