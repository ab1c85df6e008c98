"""The ring: order, turns, and that slots come back whatever happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.errors import InvalidInputError
from pipeline.bridges.host import HostCopier
from pipeline.bridges.link import SLOTS, BridgeTiming
from pipeline.bridges.ring import RingLink
from pipeline.errors import BridgeError
from pipeline.modes import StageBridge
from tests.pipeline.bridges.sending import host_link, idle, receive, rows_of, send

PAUSE_S = 5e-4


@pytest.fixture
def link() -> RingLink:
    return host_link()


def test_a_slot_is_free_again_only_after_its_receiver_is_done(link: RingLink) -> None:
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
        assert first.eq(0).all()
    assert third_sent.wait(5)
    sender.join()
    assert receive(link).eq(1).all()
    assert receive(link).eq(99).all()


def test_a_receiver_that_fails_frees_its_slot(link: RingLink) -> None:
    for _ in range(SLOTS + 1):
        send(link, torch.zeros(1, 8))
        with pytest.raises(KeyError), link.receive(link.wait()):
            raise KeyError
    assert idle(link)


def test_a_slot_that_could_not_be_filled_is_given_back(link: RingLink) -> None:
    for _ in range(SLOTS + 1):
        slot = link.acquire()
        with pytest.raises(InvalidInputError, match=r"float32 \[2, 4\]; expected .* \[rows, 8\]"):
            link.fill(slot, torch.zeros(2, 4))
        link.give_back(slot)
    assert idle(link)


def test_only_float32_is_taken(link: RingLink) -> None:
    with pytest.raises(InvalidInputError, match=r"torch\.float16 .* expected torch\.float32"):
        link.fill(link.acquire(), torch.zeros(2, 8, dtype=torch.float16))


def test_notes_come_in_turn_and_take_no_slot(link: RingLink) -> None:
    notes = [f"note {number}" for number in range(3 * SLOTS)]
    for note in notes[:-1]:
        link.pass_note(note)
    send(link, torch.ones(1, 8))
    link.pass_note(notes[-1])
    envelopes = [link.wait() for _ in notes[:-1]]
    assert [envelope.note for envelope in envelopes] == notes[:-1]
    assert {envelope.slot for envelope in envelopes} == {None}
    assert [envelope.ticket for envelope in envelopes] == list(range(1, len(notes)))
    assert receive(link).eq(1).all()
    note = link.wait()
    assert (note.note, note.ticket) == (notes[-1], len(notes) + 1)
    assert idle(link)


def test_a_note_cannot_be_received(link: RingLink) -> None:
    link.pass_note("poison")
    with pytest.raises(BridgeError, match="ticket 1 is a note"), link.receive(link.wait()):
        pass


def test_a_hand_over_out_of_turn_is_refused_and_frees_its_slot(link: RingLink) -> None:
    send(link, torch.zeros(1, 8))
    send(link, torch.zeros(1, 8))
    lost = link.wait()
    with (
        pytest.raises(BridgeError, match="hand-over 2 came where 1 was expected"),
        link.receive(link.wait()),
    ):
        pass
    assert link._free.qsize() == SLOTS - 1
    with pytest.raises(BridgeError, match="1 came where 3"), link.receive(lost):
        pass
    assert idle(link)


def test_a_note_out_of_turn_is_refused(link: RingLink) -> None:
    send(link, torch.zeros(1, 8))
    link.pass_note("poison")
    link.wait()  # lost
    with pytest.raises(BridgeError, match="hand-over 2 came where 1 was expected"):
        link.wait()


def test_receiving_twice_does_not_free_another_hand_overs_slot(link: RingLink) -> None:
    send(link, torch.zeros(1, 8))
    first = link.wait()
    with link.receive(first):
        pass
    for value in range(SLOTS):
        send(link, torch.full((1, 8), float(value)))
    with pytest.raises(BridgeError, match="hand-over 1 came where 2"), link.receive(first):
        pass
    assert link._free.qsize() == 0


def test_only_an_acquired_slot_is_filled_handed_over_or_given_back(link: RingLink) -> None:
    with pytest.raises(BridgeError, match="slot 0 was filled without"):
        link.fill(0, torch.zeros(1, 8))
    with pytest.raises(BridgeError, match="slot 1 was given back without"):
        link.give_back(1)
    slot = link.acquire()
    link.hand_over(slot, 1)
    with pytest.raises(BridgeError, match="slot 0 was handed over without"):
        link.hand_over(slot, 1)


class Failing(HostCopier):
    """Fails where it is told to, having done half of its work."""

    def __init__(self, hidden_size: int = 8) -> None:
        super().__init__(hidden_size, torch.float32)
        self.fails = ""

    def settle(self, slot: int) -> BridgeTiming:
        if self.fails == "settle":
            raise RuntimeError("settle")
        return super().settle(slot)

    def write(self, slot: int, hidden: torch.Tensor) -> BridgeTiming:
        if self.fails == "write":
            super().write(slot, hidden[: len(hidden) // 2] + 1)
            raise RuntimeError("write")
        return super().write(slot, hidden)

    def read(self, slot: int, rows: int) -> tuple[torch.Tensor, BridgeTiming]:
        if self.fails == "read":
            raise RuntimeError("read")
        return super().read(slot, rows)

    def release(self, slot: int) -> None:
        if self.fails == "release":
            raise RuntimeError("release")


def _there_and_back(link: RingLink) -> None:
    slot = link.acquire()
    try:
        link.fill(slot, torch.zeros(3, 8))
    except RuntimeError:
        link.give_back(slot)
        raise
    link.hand_over(slot, 3)
    receive(link)


@pytest.mark.parametrize("fails", ["settle", "write", "read", "release"])
def test_no_slot_is_lost_where_copying_fails(fails: str) -> None:
    copier = Failing()
    link = RingLink(StageBridge.HOST, copier, 8, torch.float32)
    for _ in range(SLOTS + 1):
        copier.fails = fails
        with pytest.raises(RuntimeError, match=fails):
            _there_and_back(link)
    copier.fails = ""
    send(link, torch.ones(3, 8))
    assert receive(link).eq(1).all()
    assert idle(link)


@dataclass(frozen=True)
class Item:
    """One job's turn on a link: rows, or a note; what goes wrong, and who is slow."""

    rows: int | None
    fill_fails: bool = False
    body_fails: bool = False
    slow_sender: bool = False
    slow_receiver: bool = False


ITEMS = st.lists(
    st.builds(
        Item,
        rows=st.none() | st.integers(1, 5) | st.sampled_from([64, 65, 90]),
        fill_fails=st.booleans(),
        body_fails=st.booleans(),
        slow_sender=st.booleans(),
        slow_receiver=st.booleans(),
    ),
    max_size=25,
)


def send_all(link: RingLink, copier: Failing, items: Sequence[Item]) -> None:
    """As a stage does: a hand-over or a note for every item."""
    for number, item in enumerate(items):
        if item.slow_sender:
            time.sleep(PAUSE_S)
        if item.rows is None:
            link.pass_note(number)
            continue
        hidden = rows_of(number, item.rows)
        slot = link.acquire()
        copier.fails = "write" if item.fill_fails else ""
        try:
            link.fill(slot, hidden)
        except RuntimeError as error:
            link.give_back(slot)
            link.pass_note(error)
        else:
            hidden.zero_()
            link.hand_over(slot, item.rows)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(items=ITEMS)
def test_everything_arrives_in_order_bit_for_bit(items: list[Item]) -> None:
    copier = Failing()
    link = RingLink(StageBridge.HOST, copier, 8, torch.float32)
    sender = threading.Thread(target=send_all, args=(link, copier, items))
    sender.start()
    for number, item in enumerate(items):
        envelope = link.wait()
        assert envelope.ticket == number + 1
        if item.rows is None:
            assert envelope.note == number
        elif item.fill_fails:
            assert isinstance(envelope.note, RuntimeError)
        else:
            expects = pytest.raises(KeyError) if item.body_fails else nullcontext()
            with expects, link.receive(envelope) as (hidden, _):
                expected = rows_of(number, item.rows)
                assert torch.equal(hidden, expected)
                if item.slow_receiver:
                    time.sleep(PAUSE_S)
                assert torch.equal(hidden, expected)  # nobody wrote to it meanwhile
                if item.body_fails:
                    raise KeyError
    sender.join()
    assert idle(link)
