"""Bridges: what each boundary gets, what is refused, and that wrong bytes are noticed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest
import torch

from kernels.errors import InvalidInputError, UnsupportedError
from pipeline.bridges.bridge import Bridge, checksum
from pipeline.bridges.host import HostCopier
from pipeline.bridges.link import SLOTS, BridgeTiming
from pipeline.bridges.opening import check_bridge, open_bridge
from pipeline.bridges.ring import RingLink
from pipeline.bridges.streams import StreamCopier
from pipeline.errors import BridgeError
from pipeline.modes import StageBridge
from tests.pipeline.bridges.fake_cuda import FakeCuda
from tests.pipeline.bridges.sending import CPU, host_link, idle, receive, rows_of, send

GPU, OTHER_GPU = torch.device("cuda", 0), torch.device("cuda", 1)


class Machine(FakeCuda):
    """Devices whose copies are done at once, and fail or corrupt where a test wants them to."""

    def __init__(self, *, peers: bool = True) -> None:
        super().__init__(eager=True)
        self.peers = peers
        self.peer_copies_give_zeros = False
        self.pinning_fails = False
        self._on_host: set[int] = set()

    def are_peers(self, source: torch.device, target: torch.device) -> bool:
        return source == target or self.peers

    def pinned(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        if self.pinning_fails:
            raise RuntimeError("no page-locked memory")
        memory = super().pinned(rows, width, dtype)
        self._on_host.add(memory.data_ptr())
        return memory

    def copy(
        self, into: torch.Tensor, rows: torch.Tensor, stream: object, other: object = None
    ) -> None:
        super().copy(into, rows, stream, other)
        if self.peer_copies_give_zeros and not {into.data_ptr(), rows.data_ptr()} & self._on_host:
            into.zero_()


@pytest.fixture
def no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe puts its pattern on the sending device, which is only a name here."""
    monkeypatch.setattr(torch.Tensor, "to", _to)


def _to(tensor: torch.Tensor, to: torch.device | torch.dtype) -> torch.Tensor:
    return tensor if isinstance(to, torch.device) else tensor.type(to)


@pytest.fixture(params=["zeros", "stale slot", "one bit", "rows swapped"])
def corrupting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    write = HostCopier.write

    def corrupt(copier: HostCopier, slot: int, hidden: torch.Tensor) -> BridgeTiming:
        into = copier._slots[slot]
        if request.param == "rows swapped":
            return write(copier, slot, hidden.flip(0))
        if request.param == "stale slot" and getattr(into, "used", False):
            return BridgeTiming()  # works until a slot is used again
        timing = write(copier, slot, hidden)
        into.used = True  # type: ignore[attr-defined]
        if request.param == "zeros":
            into.zero_()
        elif request.param == "one bit":
            into[: len(hidden)].view(torch.int32)[-1, -1] ^= 1
        return timing

    monkeypatch.setattr(HostCopier, "write", corrupt)
    return request.param


@pytest.mark.usefixtures("corrupting")
def test_the_probe_catches_a_copy_that_corrupts() -> None:
    bridge = open_bridge("host", 8, [CPU] * 3)
    with pytest.raises(BridgeError, match=r"bridge 'host' from stage 0 to stage 1 delivered"):
        bridge.probe()


def test_the_probe_names_the_link_and_leaves_links_idle() -> None:
    links = [host_link(), host_link(), host_link()]
    bridge = Bridge(links, 8, [CPU] * 4)
    bridge.probe()
    bridge.probe()
    assert all(idle(link) for link in links)
    send(links[0], rows_of(0, 2))  # the tickets of the probe are over
    receive(links[0])
    links[1]._copier.write = lambda slot, hidden: BridgeTiming()  # type: ignore[method-assign]
    with pytest.raises(BridgeError, match="from stage 1 to stage 2"):
        bridge.probe()
    assert all(idle(link) for link in links)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_crosses_is_as_asked(dtype: str) -> None:
    bridge = open_bridge("auto", 8, [CPU] * 2, dtype)
    bridge.probe()
    link = bridge.out_of(0)
    assert link is not None
    hidden = rows_of(0, 5)
    send(link, hidden)
    assert torch.equal(receive(link), hidden) == (dtype == "fp32")
    assert link.nbytes(5) == 5 * 8 * (4 if dtype == "fp32" else 2)


def test_a_bridge_has_a_link_per_boundary() -> None:
    bridge = open_bridge("host", 8, [CPU] * 3)
    assert bridge.into(0) is None
    assert bridge.out_of(2) is None
    assert bridge.out_of(0) is bridge.into(1)
    assert bridge.out_of(1) is bridge.into(2)


def test_a_single_stage_has_no_links() -> None:
    bridge = open_bridge("auto", 8, [CPU])
    bridge.probe()
    assert (bridge.links, bridge.name) == ([], StageBridge.HOST)


def kinds(name: str, devices: Sequence[torch.device], machine: Machine) -> list[StageBridge]:
    return [link.kind for link in open_bridge(name, 8, devices, cuda=machine).links]


@pytest.mark.usefixtures("no_gpu_needed")
def test_auto_takes_the_best_at_each_boundary() -> None:
    devices = [GPU, GPU, OTHER_GPU, CPU, CPU, GPU]
    peer, staged, host = StageBridge.CUDA_PEER, StageBridge.CUDA_DEVICE_STAGED, StageBridge.HOST
    assert kinds("auto", devices, Machine()) == [peer, peer, host, host, host]
    assert kinds("auto", devices, Machine(peers=False)) == [peer, staged, host, host, host]
    assert open_bridge("auto", 8, devices, cuda=Machine()).name is host
    assert open_bridge("auto", 8, devices[:3], cuda=Machine()).name is peer
    assert open_bridge("auto", 8, devices[:3], cuda=Machine(peers=False)).name is staged


@pytest.mark.usefixtures("no_gpu_needed")
@pytest.mark.parametrize("name", ["host", "cuda_peer", "cuda_device_staged"])
def test_every_bridge_carries_what_it_is_given(name: str) -> None:
    bridge = open_bridge(name, 8, [GPU, OTHER_GPU, GPU], cuda=Machine())
    bridge.probe()
    assert {link.kind for link in bridge.links} == {bridge.name} == {StageBridge(name)}
    for link in bridge.links:
        send(link, rows_of(0, 70))
        assert torch.equal(receive(link), rows_of(0, 70))


@pytest.mark.parametrize(("name", "ahead"), [("host", False), ("cuda_device_staged", True)])
def test_only_a_staged_bridge_copies_to_the_receiver_before_it_asks(name: str, ahead: bool) -> None:
    link = open_bridge(name, 8, [GPU, OTHER_GPU], cuda=Machine()).links[0]
    assert isinstance(link, RingLink)
    assert isinstance(link._copier, StreamCopier)
    send(link, rows_of(0, 3))
    on_device = link._copier._slots[0].device
    assert on_device is not None
    assert torch.equal(on_device[:3], rows_of(0, 3)) == ahead


@pytest.mark.usefixtures("no_gpu_needed")
def test_auto_falls_back_from_a_link_that_corrupts_and_says_so() -> None:
    machine = Machine()
    machine.peer_copies_give_zeros = True
    with pytest.warns(
        RuntimeWarning, match="auto does not take 'cuda_peer' from stage 0 to stage 1: .* checksum"
    ) as warned:
        assert kinds("auto", [GPU, OTHER_GPU], machine)[0] is StageBridge.CUDA_DEVICE_STAGED
    assert warned[0].filename == __file__
    bridge = open_bridge("cuda_peer", 8, [GPU, OTHER_GPU], cuda=machine)
    with pytest.raises(BridgeError, match="bridge 'cuda_peer' from stage 0 to stage 1 delivered"):
        bridge.probe()


@pytest.mark.usefixtures("no_gpu_needed")
def test_auto_falls_back_from_a_link_that_cannot_be_made() -> None:
    machine = Machine(peers=False)
    machine.pinning_fails = True
    with (
        pytest.warns(RuntimeWarning, match="'cuda_device_staged' .*: no page-locked memory"),
        pytest.raises(RuntimeError, match="no page-locked memory"),
    ):
        open_bridge("auto", 8, [GPU, OTHER_GPU], cuda=machine)  # the host's are page-locked too


def test_auto_is_silent_where_there_is_no_choice() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_bridge("auto", 8, [CPU, CPU])


@pytest.mark.parametrize(
    ("name", "devices", "why"),
    [
        ("cuda_peer", [CPU], "copies between CUDA devices, and stage 0 is on cpu"),
        ("cuda_peer", [CPU, GPU], "copies between CUDA devices, and stage 0 is on cpu"),
        ("cuda_device_staged", [GPU, GPU, CPU], "between CUDA devices, and stage 2 is on cpu"),
        ("cuda_peer", [GPU, GPU, OTHER_GPU], "cuda:0 of stage 1 has none to cuda:1 of stage 2"),
        ("distributed", [CPU], "needs the processes of torchrun"),
    ],
)
def test_an_explicit_bridge_that_cannot_be_had_says_why(
    name: str, devices: list[torch.device], why: str
) -> None:
    with pytest.raises(UnsupportedError, match=rf"bridge '{name}' .*{why}"):
        open_bridge(name, 8, devices, cuda=Machine(peers=False))
    with pytest.raises(UnsupportedError, match=rf"bridge '{name}' .*{why}"):
        check_bridge(name, devices, cuda=Machine(peers=False))


def test_checking_opens_nothing() -> None:
    machine = Machine()
    machine.pinning_fails = True
    check_bridge("cuda_device_staged", [GPU, OTHER_GPU], "bf16", cuda=machine)
    check_bridge("auto", [GPU, CPU], cuda=machine)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"bridge is 'rope'.*'host', 'cuda_peer'"):
        open_bridge("rope", 8, [CPU])
    with pytest.raises(InvalidInputError, match=r"bridge dtype is 'int8'.*'fp32', 'bf16'"):
        open_bridge("host", 8, [CPU], "int8")


def test_the_checksum_sees_values_and_places() -> None:
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert checksum(hidden) == checksum(hidden.clone())
    assert checksum(hidden) != checksum(hidden.flip(0))
    assert checksum(torch.zeros(2, 2)) != checksum(torch.tensor([[-0.0, 0.0], [0.0, 0.0]]))


def test_a_probe_that_fails_to_fill_frees_its_slot() -> None:
    links = [host_link(hidden_size=4)]
    with pytest.raises(InvalidInputError):
        Bridge(links, 8, [CPU] * 2).probe()
    assert idle(links[0])


def test_links_have_two_slots() -> None:
    link = host_link()
    assert isinstance(link, RingLink)
    assert len({link.acquire() for _ in range(SLOTS)}) == 2
