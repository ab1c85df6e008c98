"""Connections between all ranks of one start of the processes, for signs of life.

Ranks meet at the driver: it writes its address into the store, and whoever connects there and is
welcomed belongs to the same start. A store may outlive processes, so what it says may be about
dead ones; a connection cannot be.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernels.errors import LamellaError
from pipeline.distributed.world import STARTUP_SECONDS, World, wait_for

if TYPE_CHECKING:
    from torch.distributed import Store

REPLY_SECONDS = 5.0
"""A driver that does not answer a greeting for so long is one that has stopped."""


@dataclass(frozen=True)
class Mesh:
    """Open connections to all other ranks.

    Args:
        epoch: number of this start of the processes, from 1.
        hosts: name of every rank's machine.
        sockets: by rank, without this one.
    """

    rank: int
    epoch: int
    hosts: list[str]
    sockets: dict[int, socket.socket]


def connect(world: World, store: Store, address: str) -> Mesh:
    """Connect this rank with all others; `address` is where they reach it.

    Raises `LamellaError` that names the ranks that did not come.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=world.size) as listener:
        mine = {"rank": world.rank, "at": listener.getsockname()[:2], "host": socket.gethostname()}
        if world.drives:
            return _gather(world, store, listener, mine)
        return _join(world, store, listener, mine)


def _gather(world: World, store: Store, listener: socket.socket, mine: dict[str, Any]) -> Mesh:
    """The driver's way: wait for everybody, then tell everybody who there is."""
    epoch = store.add("epoch", 1)
    store.set("driver", json.dumps(mine))
    known = {0: mine}
    sockets: dict[int, socket.socket] = {}
    deadline = time.monotonic() + STARTUP_SECONDS
    while len(known) < world.size:
        other, greeting = _accept(listener, deadline, sorted({*range(world.size)} - {*known}))
        rank = greeting["rank"]
        if rank in sockets:  # it tried twice
            sockets[rank].close()
        known[rank], sockets[rank] = greeting, other
        _say(other, {"epoch": epoch})
    roster = [known[rank] for rank in range(world.size)]
    for other in sockets.values():
        _say(other, roster)
    return Mesh(0, epoch, [one["host"] for one in roster], sockets)


def _join(world: World, store: Store, listener: socket.socket, mine: dict[str, Any]) -> Mesh:
    driver, epoch = wait_for(lambda: _welcome(store, mine), "rank 0, the driver")
    sockets = {0: driver}
    driver.settimeout(STARTUP_SECONDS)
    roster = _hear(driver)
    for one in roster[1 : world.rank]:
        other = socket.create_connection(tuple(one["at"]), REPLY_SECONDS)
        _say(other, mine)
        sockets[one["rank"]] = other
    deadline = time.monotonic() + STARTUP_SECONDS
    while len(sockets) < world.size - 1:
        other, greeting = _accept(listener, deadline, sorted({*range(world.size)} - {*sockets}))
        sockets[greeting["rank"]] = other
    return Mesh(world.rank, epoch, [one["host"] for one in roster], sockets)


def _welcome(store: Store, mine: dict[str, Any]) -> tuple[socket.socket, int] | None:
    """The connection to the driver and the epoch; None if the store speaks of a dead one."""
    if not store.check(["driver"]):
        return None
    where = json.loads(store.get("driver"))["at"]
    try:
        driver = socket.create_connection(tuple(where), REPLY_SECONDS)
    except OSError:
        return None
    try:
        _say(driver, mine)
        return driver, _hear(driver)["epoch"]
    except OSError:
        driver.close()
        return None


def _accept(
    listener: socket.socket, deadline: float, missing: list[int]
) -> tuple[socket.socket, dict[str, Any]]:
    """The next rank that connects, and its greeting."""
    while True:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            other, _ = listener.accept()
        except TimeoutError:
            raise LamellaError(
                f"ranks {missing} did not come within {STARTUP_SECONDS:.0f} s"
            ) from None
        other.settimeout(REPLY_SECONDS)
        try:
            return other, _hear(other)
        except (OSError, ValueError):  # someone else, or gone again
            other.close()


def _say(to: socket.socket, what: object) -> None:
    to.sendall(json.dumps(what).encode() + b"\n")


def _hear(source: socket.socket) -> Any:
    """One line; byte by byte, as what follows it is not for us."""
    line = bytearray()
    while (byte := source.recv(1)) != b"\n":
        if not byte:
            raise ConnectionError("the other side closed the connection")
        line += byte
    return json.loads(line)
