"""Signs of life between all ranks: who died, stopped, or cannot be reached any more, and how soon.

A thread in every rank sends a few bytes to every other rank ten times a second. A process that
dies closes its connections, which is seen at once; one that was stopped, or whose network is gone,
falls silent; one that cannot go on says so. Whoever sees it first tells the others, so that all
blame the same rank.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kernels.errors import InvalidInputError
from pipeline.distributed.mesh import Mesh
from pipeline.errors import RankLostError

INTERVAL = 0.1
TIMEOUT = 0.7
LOADING_SECONDS = 10.0
"""Until all ranks are ready one may be silent for so long: imports can hold up all its threads."""

_FRAME = struct.Struct("!BxHI")  # kind, rank it is about, milliseconds or bytes of text after it
_BEAT, _LEAVE, _SILENT, _CLOSED, _FAILED = range(5)
_TEXT_ROOM = 1024  # bytes, so that they fit into any socket's buffer


def timeout_seconds() -> float:
    """How long a rank may be silent: `LAMELLA_HEARTBEAT_TIMEOUT` in seconds, 0.7 by default.

    Raises `InvalidInputError` unless it is a number that several signs of life fit into.
    """
    text = os.environ.get("LAMELLA_HEARTBEAT_TIMEOUT", str(TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 3 * INTERVAL <= seconds < 1e6:
        raise InvalidInputError(
            f"LAMELLA_HEARTBEAT_TIMEOUT is {text!r}; expected seconds from {3 * INTERVAL:.1f}"
        )
    return seconds


@dataclass
class _Peer:
    """Another rank, as this one sees it."""

    rank: int
    socket: socket.socket
    last_seen: float  # on the monotonic clock
    left: bool = False
    unread: bytearray = field(default_factory=bytearray)


class Heartbeat:
    """Watches the other ranks until `leave`.

    Args:
        mesh: connections to them; taken over.
        timeout: seconds of silence that mean a loss, once all are ready.
        on_loss: told once, in the heartbeat's thread, when a rank is lost.
    """

    def __init__(
        self, mesh: Mesh, timeout: float, on_loss: Callable[[RankLostError], None]
    ) -> None:
        self.on_loss = on_loss
        self.lost: RankLostError | None = None
        self._hosts = mesh.hosts
        self._rank = mesh.rank
        self._timeout = max(timeout, LOADING_SECONDS)
        self._timeout_when_ready = timeout
        self._lock = threading.Lock()
        self._known = threading.Event()  # a loss
        self._leaving = threading.Event()
        self._all_left = threading.Event()
        now = time.monotonic()
        self._peers = [
            _Peer(rank, connection, now) for rank, connection in sorted(mesh.sockets.items())
        ]
        self._selector = selectors.DefaultSelector()
        for peer in self._peers:
            peer.socket.setblocking(False)
            peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(peer.socket, selectors.EVENT_READ, peer)
        self._thread = threading.Thread(target=self._run, name="lamella-heartbeat", daemon=True)
        self._thread.start()

    def all_ready(self) -> None:
        """From now on silence means what it should: no rank loads or imports any more."""
        self._timeout = self._timeout_when_ready

    def check(self) -> None:
        """Raise the `RankLostError` if a rank is lost."""
        if self.lost is not None:
            raise self.lost

    @property
    def left(self) -> list[int]:
        """The ranks that ended as they should."""
        return [peer.rank for peer in self._peers if peer.left]

    def suspect(self, rank: int, why: str) -> RankLostError:
        """A connection to a rank failed: which rank is lost, once that is known.

        If signs of life go on, it is the one suspected.
        """
        if not self._known.wait(self._timeout + 5 * INTERVAL):
            self._lose(rank, f"a connection to it failed: {why}", _CLOSED)
        assert self.lost is not None
        return self.lost

    def fail(self, error: BaseException) -> RankLostError:
        """This rank cannot go on: tell the others why. Which rank is lost, maybe another."""
        if isinstance(error, RankLostError):
            return error
        text = " ".join(f"failed: {type(error).__name__}: {error}".split())
        text = text.encode("utf-8", "replace")[:_TEXT_ROOM].decode("utf-8", "ignore")
        self._lose(self._rank, text, _FAILED, cause=error)
        assert self.lost is not None
        return self.lost

    def leave(self) -> None:
        """Tell the others that this rank ends as it should, and stop. Again is fine."""
        self._leaving.set()
        if self._thread is not threading.current_thread():
            self._thread.join(5.0)

    def wait_all_left(self, seconds: float) -> list[int]:
        """Wait until all others left; the ranks that did not in time. A loss ends the waiting."""
        deadline = time.monotonic() + seconds
        while not self._all_left.wait(INTERVAL):
            if self._known.is_set() or time.monotonic() > deadline:
                break
        return [peer.rank for peer in self._peers if not peer.left]

    # In the thread

    def _run(self) -> None:
        due = last = time.monotonic()
        while not self._known.is_set():
            if self._leaving.is_set():
                self._tell(_frame(_LEAVE, self._rank))
                break
            if (now := time.monotonic()) >= due:
                self._tell(_frame(_BEAT, self._rank))
                due = now + INTERVAL
            closed = self._listen(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            if now - last > self._timeout / 2:
                # Whatever held this thread up (an interpreter lock, a machine that was suspended)
                # may have held up the others, too: count anew.
                for peer in self._peers:
                    peer.last_seen = now
            elif self._silent(now):  # it may have come since this thread asked
                closed += self._listen(0.0)
            last = now
            self._judge(closed, now)
        if self.lost is None:  # else closing could overtake what was told to the others
            for peer in self._peers:
                peer.socket.close()
        self._selector.close()

    def _listen(self, seconds: float) -> list[_Peer]:
        """Take in what comes next; the ranks that closed their connections."""
        ready = self._selector.select(seconds)
        return [peer for key, _ in ready if (peer := key.data) and not self._read(peer)]

    def _read(self, peer: _Peer) -> bool:
        """Take in what a rank sent; False if it closed the connection."""
        is_open = True
        while True:
            try:
                data = peer.socket.recv(4096)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                is_open = False
                break
            peer.last_seen = time.monotonic()
            peer.unread += data
        while len(peer.unread) >= _FRAME.size:
            kind, rank, number = _FRAME.unpack_from(peer.unread)
            end = _FRAME.size + (number if kind == _FAILED else 0)
            if len(peer.unread) < end:
                break
            text = peer.unread[_FRAME.size : end].decode("utf-8", "replace")
            del peer.unread[:end]
            self._hear(peer, kind, rank, number, text)
        if not is_open:
            self._selector.unregister(peer.socket)
        return is_open or peer.left

    def _hear(self, peer: _Peer, kind: int, rank: int, number: int, text: str) -> None:
        if kind == _LEAVE:
            peer.left = True
            if all(one.left for one in self._peers):
                self._all_left.set()
        elif kind in (_SILENT, _CLOSED):
            self._lose(rank, f"{_reason(kind, number)} (seen by rank {peer.rank})", kind, number)
        elif kind == _FAILED:
            self._lose(rank, text, kind)

    def _silent(self, now: float) -> list[_Peer]:
        return [
            peer for peer in self._peers if not peer.left and now - peer.last_seen > self._timeout
        ]

    def _judge(self, closed: list[_Peer], now: float) -> None:
        for peer in closed:
            self._lose(peer.rank, _reason(_CLOSED, 0), _CLOSED)
        for peer in self._silent(now):
            milliseconds = round((now - peer.last_seen) * 1000)
            self._lose(peer.rank, _reason(_SILENT, milliseconds), _SILENT, milliseconds)

    def _lose(
        self,
        rank: int,
        why: str,
        kind: int,
        milliseconds: int = 0,
        cause: BaseException | None = None,
    ) -> None:
        """Note the loss, tell the other ranks, and then whoever waits here."""
        with self._lock:
            if self.lost is not None:
                return
            lost = RankLostError(rank, self._hosts[rank], why)
            lost.__cause__ = cause
            self.lost = lost
        self._tell(_frame(kind, rank, milliseconds, why))
        self._known.set()
        self.on_loss(self.lost)

    def _tell(self, frame: bytes) -> None:
        for peer in self._peers:
            try:
                peer.socket.send(frame)
            except OSError:  # full, as nobody reads, or gone: reading tells
                continue


def _frame(kind: int, rank: int, milliseconds: int = 0, why: str = "") -> bytes:
    if kind != _FAILED:
        return _FRAME.pack(kind, rank, milliseconds)
    text = why.encode("utf-8", "replace")
    return _FRAME.pack(kind, rank, len(text)) + text


def _reason(kind: int, milliseconds: int) -> str:
    if kind == _SILENT:
        return f"stopped answering: no sign of life for {milliseconds / 1000:.2f} s"
    return "is gone: it closed its connection"
