"""Links between stages on the CPU: bytes arrive whole, and what they cost is told."""

from __future__ import annotations

import pytest
import torch

from pipeline.bridges.link import SLOTS
from pipeline.bridges.ring import RingLink
from tests.pipeline.bridges.sending import host_link, receive, rows_of, send


@pytest.fixture
def link() -> RingLink:
    return host_link()


@pytest.mark.parametrize("rows", [0, 1, 64, 65, 300])
def test_what_is_sent_arrives(link: RingLink, rows: int) -> None:
    for turn in range(2 * SLOTS + 1):
        hidden = rows_of(turn, rows)
        send(link, hidden)
        assert torch.equal(receive(link), hidden)


def test_the_receiver_has_its_own_copy(link: RingLink) -> None:
    hidden = torch.ones(2, 8)
    send(link, hidden)
    hidden.zero_()
    assert receive(link).eq(1).all()


def test_float32_is_read_where_it_lies(link: RingLink) -> None:
    addresses = set()
    for turn in range(2 * SLOTS):
        send(link, rows_of(turn, 3))
        with link.receive(link.wait()) as (hidden, _):
            addresses.add(hidden.data_ptr())
    assert len(addresses) == SLOTS


def test_bfloat16_on_request() -> None:
    link = host_link(dtype=torch.bfloat16)
    hidden = rows_of(0, 70)
    send(link, hidden)
    received = receive(link)
    assert received.dtype == torch.float32
    assert torch.equal(received, hidden.bfloat16().float())
    assert (link.nbytes(3), host_link().nbytes(3)) == (3 * 8 * 2, 3 * 8 * 4)


def test_hand_over_is_timed(link: RingLink) -> None:
    sent = send(link, torch.zeros(4, 8))
    with link.receive(link.wait()) as (_, received):
        total = sent + received
    assert total.bridge_ns > total.host_copy_ns > 0
    assert total.device_copy_ns == 0  # nothing was copied to a device


def test_a_slot_that_grew_in_inference_mode_can_be_filled_outside(link: RingLink) -> None:
    with torch.inference_mode():
        for _ in range(SLOTS):
            send(link, torch.zeros(100, 8))
            receive(link)
    for _ in range(SLOTS):
        send(link, torch.ones(100, 8))
        assert receive(link).eq(1).all()
