"""What tests of links do with them."""

from __future__ import annotations

import torch

from pipeline.bridges.host import HostCopier
from pipeline.bridges.link import SLOTS, BridgeTiming, Link
from pipeline.bridges.ring import RingLink
from pipeline.modes import StageBridge

CPU = torch.device("cpu")


def host_link(hidden_size: int = 8, dtype: torch.dtype = torch.float32) -> RingLink:
    """A link between two stages on the CPU."""
    return RingLink(StageBridge.HOST, HostCopier(hidden_size, dtype), hidden_size, dtype)


def rows_of(seed: int, rows: int, hidden_size: int = 8) -> torch.Tensor:
    """Random rows, float32 [rows, hidden_size]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, hidden_size, generator=generator)


def idle(link: RingLink) -> bool:
    """Whether every slot is free and nothing is on its way; only while neither side works."""
    return link._free.qsize() == SLOTS and link._passed.empty()


def send(link: Link, hidden: torch.Tensor) -> BridgeTiming:
    """Hand `hidden` over."""
    slot = link.acquire()
    timing = link.fill(slot, hidden)
    link.hand_over(slot, len(hidden))
    return timing


def receive(link: Link) -> torch.Tensor:
    """A copy of the next hidden state."""
    with link.receive(link.wait()) as (hidden, _):
        return hidden.clone()
