"""Connections between all ranks of one start of the processes, for signs of life.

Ranks meet at the driver: it writes its address into the store, and whoever connects there and is
welcomed belongs to the same start. A store may outlive processes, so what it says may be about
dead ones; a connection cannot be. Beside the address is a random word that strangers do not know.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kernels.errors import LamellaError
from pipeline.distributed.greetings import (
    GREETING_SECONDS,
    Greeting,
    Reception,
    greeting_of,
    hear,
    say,
)
from pipeline.distributed.world import STARTUP_SECONDS, World, wait_for
from pipeline.errors import RankLostError

if TYPE_CHECKING:
    from torch.distributed import Store


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

    Raises `LamellaError` that names the ranks that did not come, `RankLostError` if one was gone
    again before all were connected.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sockets: dict[int, socket.socket] = {}
    with socket.create_server((address, 0), family=family, backlog=128) as listener:
        try:
            if world.drives:
                return _gather(world, store, listener, sockets)
            return _join(world, store, listener, sockets)
        except BaseException:
            for connection in sockets.values():  # which is how the others hear of it
                connection.close()
            raise


def _gather(
    world: World, store: Store, listener: socket.socket, sockets: dict[int, socket.socket]
) -> Mesh:
    """The driver's way: wait for everybody, tell everybody who there is, and when all met."""
    epoch = store.add("epoch", 1)
    mine = _greeting(0, listener, secrets.token_hex(16))
    store.set("driver", json.dumps(asdict(mine)))
    known = {0: mine}
    everyone = range(world.size)
    with closing(Reception(listener, mine.nonce, everyone[1:])) as reception:
        deadline = time.monotonic() + STARTUP_SECONDS
        while len(known) < world.size:
            _check_time(deadline, [rank for rank in everyone if rank not in known])
            came, readable = reception.poll()
            gone = [rank for rank, one in sockets.items() if one in readable]
            for rank in {*gone, *(greeting.rank for greeting, _ in came)} & {*sockets}:
                known.pop(rank)  # it may try twice
                reception.forget(sockets[rank])
                sockets.pop(rank).close()
            for greeting, connection in came:
                known[greeting.rank], sockets[greeting.rank] = greeting, connection
                reception.watch(connection)
                with suppress(OSError):  # which shows as readable
                    say(connection, {"epoch": epoch})
        hosts = [known[rank].host for rank in everyone]
        try:
            for rank, connection in sockets.items():
                _tell(rank, hosts[rank], connection, [asdict(known[rank]) for rank in everyone])
            waiting = {*sockets}
            while waiting:
                _check_time(deadline, sorted(waiting))
                _, readable = reception.poll()
                for rank in [rank for rank, one in sockets.items() if one in readable]:
                    _hear(rank, hosts[rank], sockets[rank], GREETING_SECONDS)
                    waiting.discard(rank)
            for rank, connection in sockets.items():
                _tell(rank, hosts[rank], connection, {"all": "connected"})
        except _Lost as lost:
            for connection in sockets.values():
                with suppress(OSError):
                    say(connection, {"lost": lost.args})
                    connection.shutdown(socket.SHUT_WR)
            for connection in sockets.values():  # closing with something unread would reset it
                with suppress(OSError):
                    connection.settimeout(1.0)
                    while connection.recv(4096):
                        pass
            raise RankLostError(*lost.args) from lost.__cause__
    return Mesh(0, epoch, hosts, sockets)


def _join(
    world: World, store: Store, listener: socket.socket, sockets: dict[int, socket.socket]
) -> Mesh:
    """The others' way: greet the driver, connect with those before, wait for those after."""
    me = world.rank
    driver, host, nonce, epoch = wait_for(
        lambda: _welcome(me, store, listener), "rank 0, the driver"
    )
    sockets[0] = driver
    try:
        lines = _hear(0, host, driver, STARTUP_SECONDS)
        roster = [greeting_of(line) for line in lines]
        mine = roster[me]
        for one in roster[1:me]:
            try:
                sockets[one.rank] = socket.create_connection(one.at, GREETING_SECONDS)
                mine.say(sockets[one.rank])
            except OSError as error:
                lost = (one.rank, one.host, f"cannot be reached: {error}")
                with suppress(OSError):
                    say(driver, {"lost": lost})
                # The driver says which rank all are to name, maybe another.
                _hear(0, host, driver, GREETING_SECONDS)
                raise _Lost(*lost) from error
        deadline = time.monotonic() + STARTUP_SECONDS
        with closing(Reception(listener, nonce, range(me + 1, world.size))) as reception:
            reception.watch(driver)
            while missing := [rank for rank in range(me + 1, world.size) if rank not in sockets]:
                _check_time(deadline, missing)
                came, readable = reception.poll()
                if readable:  # it speaks before this rank did: of a loss
                    _hear(0, host, driver, GREETING_SECONDS)
                sockets.update({greeting.rank: connection for greeting, connection in came})
        with suppress(OSError):  # why, is still to be heard
            say(driver, {"rank": me})
        _hear(0, host, driver, STARTUP_SECONDS)
    except _Lost as lost:
        raise RankLostError(*lost.args) from lost.__cause__
    return Mesh(me, epoch, [one.host for one in roster], sockets)


def _welcome(
    rank: int, store: Store, listener: socket.socket
) -> tuple[socket.socket, str, str, int] | None:
    """The driver's connection, host and nonce, and the epoch; None if the store's is a dead one."""
    if not store.check(["driver"]):
        return None
    try:
        there = greeting_of(json.loads(store.get("driver")))
        driver = socket.create_connection(there.at, GREETING_SECONDS)
    except (OSError, ValueError):
        return None
    try:
        _greeting(rank, listener, there.nonce).say(driver)
        match hear(driver, GREETING_SECONDS):
            case {"epoch": int(epoch)}:
                return driver, there.host, there.nonce, epoch
    except OSError:
        pass
    driver.close()  # it stopped, or is someone else
    return None


def _greeting(rank: int, listener: socket.socket, nonce: str) -> Greeting:
    address, port = listener.getsockname()[:2]
    return Greeting(rank, (address, port), socket.gethostname(), nonce)


class _Lost(Exception):
    """A rank, its host, and why it is lost; to be told to all."""


def _tell(rank: int, host: str, to: socket.socket, what: object) -> None:
    try:
        say(to, what)
    except OSError as error:
        raise _Lost(rank, host, f"is gone while the ranks connect: {error}") from error


def _hear(rank: int, host: str, source: socket.socket, seconds: float) -> Any:
    """What a rank says. Raises `_Lost` if that is a loss, or if it says nothing more."""
    try:
        said = hear(source, seconds)
    except OSError as error:
        raise _Lost(rank, host, f"is gone while the ranks connect: {error}") from error
    match said:
        case {"lost": [int(gone), str(where), str(why)]}:
            raise _Lost(gone, where, why)
    return said


def _check_time(deadline: float, missing: list[int]) -> None:
    if time.monotonic() > deadline:
        raise LamellaError(f"ranks {missing} did not come within {STARTUP_SECONDS:.0f} s")
