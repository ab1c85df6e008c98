"""Who is lost, how soon that is noticed, and that all say the same."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations

import pytest
from torch.distributed import HashStore

from kernels.errors import InvalidInputError, LamellaError
from pipeline.distributed.greetings import Greeting, greeting_of, hear
from pipeline.distributed.heartbeat import Heartbeat, timeout_seconds
from pipeline.distributed.mesh import Mesh, connect
from pipeline.distributed.world import World
from pipeline.errors import RankLostError
from tests.pipeline.distributed.launching import ROOT, environment, free_port

SOON = 2.0  # seconds; without load it is 0.7, or nothing where a connection closes


class Watch:
    """A heartbeat, and what it told."""

    def __init__(self, mesh: Mesh, timeout: float = 0.7) -> None:
        self.told: list[RankLostError] = []
        self.sockets = mesh.sockets
        self.heart = Heartbeat(mesh, timeout, self.told.append)
        self.heart.all_ready()

    def wait(self) -> str:
        deadline = time.monotonic() + SOON
        while not self.told:
            assert time.monotonic() < deadline, "nothing was noticed"
            time.sleep(0.01)
        assert self.heart.lost is self.told[0]
        return str(self.told[0])


@contextlib.contextmanager
def meshes(size: int) -> Iterator[list[Mesh]]:
    """Connected ranks in this process."""
    sockets: list[dict[int, socket.socket]] = [{} for _ in range(size)]
    for one, other in combinations(range(size), 2):
        sockets[one][other], sockets[other][one] = socket_pair()
    hosts = [f"host{rank}" for rank in range(size)]
    yield [Mesh(rank, 1, hosts, sockets[rank]) for rank in range(size)]
    for mine in sockets:
        for one in mine.values():
            one.close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


def test_a_rank_that_leaves_is_not_lost() -> None:
    with meshes(3) as three:
        watches = [Watch(mesh) for mesh in three]
        time.sleep(0.3)
        for watch in watches[1:]:
            watch.heart.leave()
        assert watches[0].heart.wait_all_left(SOON) == []
        time.sleep(0.9)
        watches[0].heart.leave()
        assert not any(watch.told for watch in watches)
        watches[0].heart.check()


def test_a_closed_connection_is_noticed_at_once_and_all_blame_the_same() -> None:
    with meshes(3) as three:
        watches = [Watch(mesh, timeout=30) for mesh in three[:2]]
        time.sleep(0.2)
        three[2].sockets[1].close()  # rank 0 still hears nothing of it but from rank 1
        assert watches[1].wait() == "rank 2 (host host2) is gone: it closed its connection"
        assert watches[0].wait() == f"{watches[1].told[0]} (seen by rank 1)"
        with pytest.raises(RankLostError, match="rank 2"):
            watches[0].heart.check()
        assert watches[0].heart.suspect(1, "broken pipe") is watches[0].told[0]


def test_a_silent_rank_is_lost() -> None:
    with meshes(2) as two:
        watch = Watch(two[0])
        two[1].sockets[0].sendall(bytes(8))  # one sign of life
        start = time.monotonic()
        assert "rank 1 (host host1) stopped answering: no sign of life for " in watch.wait()
        assert time.monotonic() - start > 0.5
        assert watch.told[0].rank == 1


def test_silence_is_no_loss_while_ranks_load() -> None:
    with meshes(2) as two:
        told: list[RankLostError] = []
        heart = Heartbeat(two[0], 0.3, told.append)
        time.sleep(0.8)
        assert not told
        heart.all_ready()
        time.sleep(0.5)
        assert [lost.rank for lost in told] == [1]


def test_a_failed_connection_is_a_loss_even_if_signs_of_life_go_on() -> None:
    with meshes(2) as two:
        one, other = (Watch(mesh) for mesh in two)
        why = str(one.heart.suspect(1, "reset by peer"))
        assert why == "rank 1 (host host1) a connection to it failed: reset by peer"
        assert "rank 1" in other.wait()


def test_a_thread_that_was_held_up_blames_nobody() -> None:
    with meshes(2) as two:
        watches = [Watch(mesh, timeout=0.4) for mesh in two]
        time.sleep(0.3)
        ctypes.PyDLL(None).poll(None, 0, 1000)  # a second in which no other thread runs
        time.sleep(0.3)
        assert [watch.told for watch in watches] == [[], []]


def test_a_rank_that_cannot_go_on_says_why() -> None:
    with meshes(3) as three:
        watches = [Watch(mesh, timeout=30) for mesh in three]
        cause = MemoryError("no room\n" + "é" * 900)
        lost = watches[1].heart.fail(cause)
        assert lost.__cause__ is cause
        assert str(lost).startswith("rank 1 (host host1) failed: MemoryError: no room é")
        assert [watch.wait() for watch in watches] == [str(lost)] * 3
        assert watches[0].heart.fail(ValueError("later")) is watches[0].told[0]


UNHEARD = """
import os, sys, time
from pipeline.distributed.heartbeat import Heartbeat
from pipeline.distributed.mesh import Mesh
from pipeline.distributed.serving import _end_the_process
from tests.pipeline.distributed.test_heartbeat import socket_pair
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
os.dup2(write, 2)
sys.stdout = os.fdopen(1, "w", closefd=False)
print("waits in the buffer")
Heartbeat(Mesh(0, 1, ["a", "b"], {1: socket_pair()[0]}), 0.3, _end_the_process).all_ready()
time.sleep(15)
os._exit(7)
"""


def test_a_survivor_ends_though_nobody_reads_what_it_writes() -> None:
    done = subprocess.run([sys.executable, "-c", UNHEARD], cwd=ROOT, env=environment(), timeout=25)
    assert done.returncode == 1


RANK = """
import sys, time
from torch.distributed import TCPStore
from pipeline.distributed.heartbeat import Heartbeat
from pipeline.distributed.mesh import connect
from pipeline.distributed.world import World
world = World(1, 2, 1, 2, "127.0.0.1", int(sys.argv[1]))
Heartbeat(connect(world, world.open_store(), "127.0.0.1"), 0.7, print)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_processes_that_die_or_stop(number: signal.Signals) -> None:
    world = World(0, 2, 0, 2, "127.0.0.1", free_port())
    store = world.open_store()
    other = subprocess.Popen(
        [sys.executable, "-c", RANK, str(world.port)], cwd=ROOT, env=environment()
    )
    try:
        watch = Watch(connect(world, store, "127.0.0.1"))
        time.sleep(0.3)
        assert not watch.told
        os.kill(other.pid, number)
        why = "closed its connection" if number == signal.SIGKILL else "no sign of life"
        assert why in watch.wait()
    finally:
        other.kill()
        other.wait()


class Meeting:
    """Ranks that connect in threads of this process."""

    def __init__(self, size: int) -> None:
        self.store = HashStore()
        self._size = size
        self.made: dict[int, Mesh | LamellaError] = {}
        self._threads: list[threading.Thread] = []

    def start(self, rank: int) -> None:
        def run() -> None:
            world = World(rank, self._size, rank, self._size, "127.0.0.1", 1)
            try:
                self.made[rank] = connect(world, self.store, "127.0.0.1")
            except LamellaError as error:
                self.made[rank] = error

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def driver(self) -> Greeting:
        """What the driver wrote."""
        while not self.store.check(["driver"]):
            time.sleep(0.01)
        return greeting_of(json.loads(self.store.get("driver")))

    def end(self) -> dict[int, Mesh | LamellaError]:
        for thread in self._threads:
            thread.join(20)
        for mesh in self.made.values():
            for one in mesh.sockets.values() if isinstance(mesh, Mesh) else ():
                one.close()
        return self.made


def test_strangers_on_the_port_hold_up_nobody() -> None:
    meeting = Meeting(2)
    meeting.start(0)
    at = meeting.driver().at
    strangers = [socket.create_connection(at) for _ in range(6)]
    wrong = Greeting(1, ("127.0.0.1", 1), "host", "not the nonce")
    for stranger, said in zip(
        strangers, [b"", b"1\n", b'{"rank": 7}\n', b"[" * 4000 + b"\n", b"x" * 9000], strict=False
    ):
        stranger.sendall(said)
    wrong.say(strangers[5])
    start = time.monotonic()
    meeting.start(1)
    made = meeting.end()
    assert time.monotonic() - start < 4, "the silent one was not waited for"
    assert [type(made[rank]) for rank in (0, 1)] == [Mesh, Mesh]
    for stranger in strangers:
        stranger.close()


def test_a_rank_that_dies_while_all_connect_is_named_on_all() -> None:
    meeting = Meeting(4)
    for rank in (0, 1, 2):
        meeting.start(rank)
    driver = meeting.driver()
    dying = socket.create_connection(driver.at)
    Greeting(3, ("127.0.0.1", 1), "there", driver.nonce).say(dying)
    assert hear(dying, 10) == {"epoch": 1}
    assert len(hear(dying, 10)) == 4
    dying.close()
    start = time.monotonic()
    made = meeting.end()
    assert time.monotonic() - start < 4
    told = {str(made[rank]) for rank in (0, 1, 2)}
    assert told == {
        "rank 3 (host there) is gone while the ranks connect: the other side closed the connection"
    }


def test_a_store_that_tells_of_dead_ranks_misleads_nobody() -> None:
    store = HashStore()
    _, gone = (s.getsockname() for s in socket_pair())
    store.set("driver", json.dumps(asdict(Greeting(0, gone, "there", "nonce"))))
    store.add("epoch", 4)
    worlds = [World(rank, 3, rank, 3, "127.0.0.1", 1) for rank in range(3)]
    made: dict[int, Mesh] = {}

    def join(world: World) -> None:
        made[world.rank] = connect(world, store, "127.0.0.1")

    threads = [threading.Thread(target=join, args=(world,)) for world in reversed(worlds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [made[rank].epoch for rank in range(3)] == [5, 5, 5]
    assert [sorted(made[rank].sockets) for rank in range(3)] == [[1, 2], [0, 2], [0, 1]]
    for mesh in made.values():
        for one in mesh.sockets.values():
            one.close()


@pytest.mark.parametrize("text", ["soon", "0.1", "-1", "nan", "inf"])
def test_timeouts_that_make_no_sense(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_HEARTBEAT_TIMEOUT", text)
    with pytest.raises(InvalidInputError, match=f"LAMELLA_HEARTBEAT_TIMEOUT is '{text}'"):
        timeout_seconds()
