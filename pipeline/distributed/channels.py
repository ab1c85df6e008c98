"""Connections of torch.distributed: apart for orders, answers and hidden states.

Each is a process group of its own, so that nothing waits behind something of another kind; their
processes are connected when they are made. They are made directly, so that a script's own use of
`torch.distributed` is left alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, cast

from pipeline.distributed.world import World

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

_FOREVER = timedelta(days=10000)  # the heartbeat says when to give up


class Group(Protocol):
    """The part of a process group that is used: one message to or from a rank of the group."""

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> Any: ...
    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> Any: ...


@dataclass(frozen=True)
class Channels:
    """A rank's process groups.

    Args:
        orders, answers: of all ranks, over gloo.
        before, after: of two ranks each, this one and the one before or after it; None at the ends.
    """

    orders: Group
    answers: Group
    before: Group | None
    after: Group | None


def open_channels(world: World, store: Store, address: str, *, nccl: bool) -> Channels:
    """Connect with all others; hidden states go over NCCL or gloo.

    `address` is this rank's, for gloo; `store` is of this start of the processes alone.
    """
    from torch.distributed import PrefixStore

    gloo = _Gloo(address)
    orders = gloo.group(PrefixStore("orders", store), world.rank, world.size)
    answers = gloo.group(PrefixStore("answers", store), world.rank, world.size)

    def link(first: int) -> Group:
        at = PrefixStore(f"hidden/{first}", store)
        rank = world.rank - first
        return _nccl_group(at, rank) if nccl else gloo.group(at, rank, 2)

    before = link(world.rank - 1) if world.rank else None
    after = link(world.rank) if world.rank < world.size - 1 else None
    return Channels(orders, answers, before, after)


class _Gloo:
    """Groups over one network interface."""

    def __init__(self, address: str) -> None:
        from torch.distributed import ProcessGroupGloo

        name = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
        if name:
            self._device = ProcessGroupGloo.create_device(interface=name)
        else:
            self._device = ProcessGroupGloo.create_device(hostname=address)

    def group(self, store: Store, rank: int, size: int) -> Group:
        from torch.distributed import ProcessGroupGloo

        options: Any = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = _FOREVER
        options._devices = [self._device]
        return cast(Group, ProcessGroupGloo(store, rank, size, options))


def _nccl_group(store: Store, rank: int) -> Group:
    """Two ranks over NCCL, which connects them with their first message, the probe's."""
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = _FOREVER
    return cast(Group, ProcessGroupNCCL(store, rank, 2, options))
