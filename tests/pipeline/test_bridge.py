"""The host bridge: bytes arrive whole, slots are not reused too early, wrong bytes are noticed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from pipeline.bridge import (
    SLOTS,
    BridgeTiming,
    HostBridge,
    HostLink,
    LinkAborted,
    checksum,
)
from pipeline.errors import BridgeError
from pipeline.hidden import PipelineHidden
from pipeline.llama_pipeline import LlamaPipeline
from tests.pipeline.fake_stage import fake_stages

CPU = torch.device("cpu")


def send(link: HostLink, hidden: torch.Tensor) -> BridgeTiming:
    slot = link.acquire()
    timing = link.fill(slot, PipelineHidden(hidden))
    link.hand_over(slot, len(hidden))
    return timing


@pytest.fixture
def link() -> HostLink:
    return HostLink(8)


@pytest.mark.parametrize("rows", [1, 64, 65, 300])
def test_what_is_sent_arrives(link: HostLink, rows: int) -> None:
    for turn in range(2 * SLOTS + 1):
        hidden = torch.randn(rows, 8, generator=torch.Generator().manual_seed(turn))
        send(link, hidden)
        with link.receive(link.wait()) as (received, _):
            assert torch.equal(received.storage, hidden)
            assert received.row_count == rows


def test_the_receiver_has_its_own_copy(link: HostLink) -> None:
    hidden = torch.ones(2, 8)
    send(link, hidden)
    hidden.zero_()
    with link.receive(link.wait()) as (received, _):
        assert received.storage.eq(1).all()


def test_hand_over_is_timed(link: HostLink) -> None:
    sent = send(link, torch.zeros(4, 8))
    with link.receive(link.wait()) as (_, received):
        total = sent + received
    assert total.bridge_ns > total.host_copy_ns > 0
    assert total.device_copy_ns == 0  # nothing was copied to a device


def test_a_slot_is_free_again_only_after_its_receiver_is_done(link: HostLink) -> None:
    for value in range(SLOTS):
        send(link, torch.full((1, 8), float(value)))
    third_sent = threading.Event()

    def send_third() -> None:
        send(link, torch.full((1, 8), 99.0))
        third_sent.set()

    sender = threading.Thread(target=send_third)
    sender.start()
    with link.receive(link.wait()) as (first, _):
        assert not third_sent.wait(0.05)  # both slots are taken, one of them by this very row
        assert first.storage.eq(0).all()
    assert third_sent.wait(5)
    sender.join()
    for value in (1.0, 99.0):
        with link.receive(link.wait()) as (received, _):
            assert received.storage.eq(value).all()


def test_a_receiver_that_fails_keeps_its_slot(link: HostLink) -> None:
    send(link, torch.zeros(1, 8))
    with pytest.raises(KeyError), link.receive(link.wait()):
        raise KeyError
    assert link._free.qsize() == SLOTS - 1
    link.reset()
    assert link._free.qsize() == SLOTS


def test_hand_overs_are_numbered(link: HostLink) -> None:
    send(link, torch.zeros(1, 8))
    send(link, torch.zeros(1, 8))
    link.wait()  # lost
    with (
        pytest.raises(BridgeError, match="hand-over 2 came where 1 was expected"),
        link.receive(link.wait()),
    ):
        pass


def test_abort_wakes_both_sides_and_reset_mends(link: HostLink) -> None:
    woken = []

    def wait_for(side: str) -> None:
        try:
            if side == "receiver":
                link.wait()
            else:
                for _ in range(SLOTS + 1):
                    link.acquire()
        except LinkAborted:
            woken.append(side)

    threads = [threading.Thread(target=wait_for, args=(side,)) for side in ("receiver", "sender")]
    for thread in threads:
        thread.start()
    link.abort()
    for thread in threads:
        thread.join(5)
    assert sorted(woken) == ["receiver", "sender"]
    link.reset()
    send(link, torch.ones(1, 8))
    with link.receive(link.wait()) as (received, _):
        assert received.storage.eq(1).all()


@pytest.fixture(params=["zeros", "stale slot", "one bit", "rows swapped"])
def corrupting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    def copy(link: HostLink, into: torch.Tensor, hidden: torch.Tensor) -> None:
        into.copy_(hidden)
        if request.param == "zeros":
            into.zero_()
        elif request.param == "one bit":
            into.view(torch.int32)[-1, -1] ^= 1
        elif request.param == "rows swapped":
            into.copy_(hidden.flip(0))

    def stale(link: HostLink, into: torch.Tensor, hidden: torch.Tensor) -> None:
        if link._sent < SLOTS:  # works until a slot is used again
            into.copy_(hidden)

    monkeypatch.setattr(HostLink, "_copy", stale if request.param == "stale slot" else copy)
    return request.param


@pytest.mark.usefixtures("corrupting")
def test_the_probe_catches_a_copy_that_corrupts() -> None:
    bridge = HostBridge(8, [CPU] * 3)
    with pytest.raises(BridgeError, match=r"bridge 'host' from stage 0 to stage 1 delivered"):
        bridge.probe()


@pytest.mark.usefixtures("corrupting")
def test_a_pipeline_is_not_built_on_a_bridge_that_corrupts() -> None:
    before = threading.active_count()
    with pytest.raises(BridgeError):
        LlamaPipeline(fake_stages([1, 1]))
    assert threading.active_count() == before


def test_the_probe_names_the_link_and_leaves_links_empty() -> None:
    bridge = HostBridge(8, [CPU] * 3)
    bridge.probe()
    assert [link._free.qsize() for link in bridge.links] == [SLOTS, SLOTS]
    bridge.links[1]._copy = lambda into, hidden: into.zero_()  # type: ignore[method-assign]
    with pytest.raises(BridgeError, match="from stage 1 to stage 2"):
        bridge.probe()


def test_a_bridge_has_a_link_per_boundary() -> None:
    bridge = HostBridge(8, [CPU] * 3)
    assert bridge.into(0) is None
    assert bridge.out_of(2) is None
    assert bridge.out_of(0) is bridge.into(1)
    assert bridge.out_of(1) is bridge.into(2)


def test_the_checksum_sees_values_and_places() -> None:
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert checksum(hidden) == checksum(hidden.clone())
    assert checksum(hidden) != checksum(hidden.flip(0))
    assert checksum(torch.zeros(2, 2)) != checksum(torch.tensor([[-0.0, 0.0], [0.0, 0.0]]))
