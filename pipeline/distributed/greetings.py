"""Lines of JSON over a connection, and how a rank is told from a stranger on the same port."""

from __future__ import annotations

import json
import selectors
import socket
import time
from dataclasses import asdict, dataclass
from typing import Any

GREETING_SECONDS = 5.0
"""All of a greeting must have come by then, and the answer to one."""

_GREETING_BYTES = 4096
_LINE_BYTES = 1 << 24  # of what a known rank says
_ROUND_SECONDS = 0.5


@dataclass(frozen=True)
class Greeting:
    """Who connects.

    Args:
        rank: its own.
        at: address and port where it listens.
        host: name of its machine.
        nonce: what the driver wrote beside its address; strangers do not know it.
    """

    rank: int
    at: tuple[str, int]
    host: str
    nonce: str

    def say(self, to: socket.socket) -> None:
        """Send it. Raises `OSError`."""
        say(to, asdict(self))


def greeting_of(line: Any) -> Greeting:
    """The greeting that a line is. Raises `ValueError` if it is none."""
    match line:
        case {"rank": int(rank), "at": [str(address), int(port)], "host": str(h), "nonce": str(n)}:
            return Greeting(rank, (address, port), h, n)
    raise ValueError("this is no greeting")


def say(to: socket.socket, what: object) -> None:
    """Send a line. Raises `OSError`."""
    to.settimeout(GREETING_SECONDS)
    to.sendall(json.dumps(what).encode() + b"\n")


def hear(source: socket.socket, seconds: float) -> Any:
    """The next line; byte by byte, as what follows it is not for us.

    Raises `OSError` if it does not come in time, or is none.
    """
    deadline = time.monotonic() + seconds
    line = bytearray()
    while True:
        source.settimeout(max(0.001, deadline - time.monotonic()))
        byte = source.recv(1)
        if not byte:
            raise ConnectionError("the other side closed the connection")
        if byte == b"\n":
            break
        line += byte
        if len(line) > _LINE_BYTES:
            raise ConnectionError("the other side said too much")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConnectionError("the other side said something that is not JSON") from error


@dataclass
class _Guest:
    """Someone who connected and has not said all of a greeting."""

    deadline: float  # on the monotonic clock
    line: bytearray


class Reception:
    """Takes in greetings, all at the same time, so that a stranger holds up nobody.

    Args:
        listener: where ranks connect; not closed by this.
        nonce: that they must know.
        ranks: that may come.
    """

    def __init__(self, listener: socket.socket, nonce: str, ranks: range) -> None:
        self._listener = listener
        self._nonce = nonce
        self._ranks = ranks
        self._guests: dict[socket.socket, _Guest] = {}
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def watch(self, connection: socket.socket) -> None:
        """From now on `poll` tells when something can be read there."""
        self._selector.register(connection, selectors.EVENT_READ)

    def forget(self, connection: socket.socket) -> None:
        """Watch it no more."""
        self._selector.unregister(connection)

    def poll(self) -> tuple[list[tuple[Greeting, socket.socket]], list[socket.socket]]:
        """Ranks that came, and watched connections that can be read, after half a second at most.

        Whoever else connected is sent away.
        """
        came, readable = [], []
        for key, _ in self._selector.select(_ROUND_SECONDS):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if connection is self._listener:
                self._let_in()
            elif connection not in self._guests:
                readable.append(connection)
            elif (greeting := self._listen_to(connection)) is not None:
                came.append((greeting, connection))
        now = time.monotonic()
        for connection in [one for one, guest in self._guests.items() if now > guest.deadline]:
            self._send_away(connection)
        return came, readable

    def close(self) -> None:
        """Send away whoever did not say who they are."""
        for connection in list(self._guests):
            self._send_away(connection)
        self._selector.close()

    def _let_in(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # gone again
            return
        connection.setblocking(False)
        self._guests[connection] = _Guest(time.monotonic() + GREETING_SECONDS, bytearray())
        self._selector.register(connection, selectors.EVENT_READ)

    def _listen_to(self, connection: socket.socket) -> Greeting | None:
        line = self._guests[connection].line
        try:
            data = connection.recv(_GREETING_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        line += data
        if data and b"\n" not in line and len(line) <= _GREETING_BYTES:
            return None
        try:
            # A rank waits for an answer, so nothing follows its greeting.
            greeting = greeting_of(json.loads(line) if line.endswith(b"\n") else None)
        except (ValueError, RecursionError):
            greeting = None
        if greeting is None or greeting.nonce != self._nonce or greeting.rank not in self._ranks:
            self._send_away(connection)
            return None
        del self._guests[connection]
        self._selector.unregister(connection)
        return greeting

    def _send_away(self, connection: socket.socket) -> None:
        del self._guests[connection]
        self._selector.unregister(connection)
        connection.close()
