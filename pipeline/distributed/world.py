"""The processes that torchrun started: who this one is, and where and how they meet."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from kernels.errors import InvalidInputError, LamellaError
from pipeline.threads import machine_cores, usable_cores

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")

STARTUP_SECONDS = 300.0
"""How long ranks wait for each other before anything is loaded."""

LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class World:
    """One process among those that torchrun started.

    Args:
        rank, size: of all processes; rank r runs stage r, and rank 0 drives.
        local_rank, local_size: of those on this machine.
        address, port: of the store that all ranks reach.
        agent_store: whether torchrun keeps the store, which then outlives the processes.
        restarts: how often torchrun starts all processes anew if one fails.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    agent_store: bool = False
    restarts: int = 0

    @classmethod
    def of_environment(cls, env: Mapping[str, str] | None = None) -> World | None:
        """The world that torchrun describes in the environment; None if there is but one process.

        Raises `InvalidInputError` that names a variable that is missing or no number.
        """
        env = os.environ if env is None else env
        if "RANK" not in env or "WORLD_SIZE" not in env:
            return None
        rank, size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
        if size < 2:
            return None
        if "MASTER_ADDR" not in env:
            raise InvalidInputError("MASTER_ADDR is not set; torchrun sets it beside WORLD_SIZE")
        return cls(
            rank,
            size,
            _number(env, "LOCAL_RANK", 0),
            _number(env, "LOCAL_WORLD_SIZE", 1),
            env["MASTER_ADDR"],
            _number(env, "MASTER_PORT"),
            env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            _number(env, "TORCHELASTIC_MAX_RESTARTS", 0),
        )

    @property
    def drives(self) -> bool:
        """Whether this is the rank that users talk to."""
        return self.rank == 0

    @property
    def one_host(self) -> bool:
        """Whether all processes are on one machine."""
        return self.local_size == self.size

    def threads(self) -> int:
        """Intra-op threads of this process's stage, unless told.

        Processes of one machine share its cores. torchrun sets `OMP_NUM_THREADS` to 1 where nobody
        set it, so 1 is no wish here; `threads=1` is.
        """
        if os.environ.get("OMP_NUM_THREADS", "1") != "1":
            return usable_cores()
        return max(1, machine_cores() // self.local_size)

    def open_store(self) -> Store:
        """The store that all ranks share. Raises `LamellaError` if it cannot be reached."""
        try:
            if self.drives and not self.agent_store:
                _host_store(self.address, self.port)
            return _connect(self.address, self.port, hosts=False)
        except RuntimeError as error:
            raise LamellaError(
                f"rank {self.rank} cannot reach the store at {self.address}:{self.port}: {error}"
            ) from error

    def own_address(self, store: Store) -> str:
        """The address of this machine by which the others reach it.

        It is that of the interface in `GLOO_SOCKET_IFNAME`, else the one that leads to
        `MASTER_ADDR`. A machine's own name often stands for the loopback interface; then it is the
        one that leads to a rank elsewhere.
        """
        if name := os.environ.get("GLOO_SOCKET_IFNAME"):
            return interface_address(name.split(",")[0])
        if self.one_host:
            return LOOPBACK
        own = route_to(self.address)
        if not _is_loopback(own):
            store.set(f"address/{self.rank}", own)
            return own
        return route_to(wait_for(lambda: self._elsewhere(store), "another machine's address"))

    def _elsewhere(self, store: Store) -> str | None:
        for rank in range(self.size):
            if store.check([f"address/{rank}"]):
                return store.get(f"address/{rank}").decode()
        return None


def wait_for(look: Callable[[], T | None], what: str, seconds: float = STARTUP_SECONDS) -> T:
    """What `look` finds, asked twenty times a second; a `LamellaError` if that takes too long."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise LamellaError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.05)
    return found


@cache
def _host_store(address: str, port: int) -> Store:
    """The store of this process, which keeps it to its end: one port has one store."""
    return _connect(address, port, hosts=True)


def _connect(address: str, port: int, *, hosts: bool) -> Store:
    from torch.distributed import TCPStore

    patience = timedelta(seconds=STARTUP_SECONDS)
    return TCPStore(address, port, None, is_master=hosts, wait_for_workers=False, timeout=patience)


def route_to(host: str) -> str:
    """This machine's address on the way to a host."""
    family, kind, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:  # nothing is sent
        probe.connect(where)
        return str(probe.getsockname()[0])


def interface_address(name: str) -> str:
    """The IPv4 address of a network interface. Raises `InvalidInputError` if it has none."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            asked = struct.pack("256s", name.encode()[:15])
            answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, asked)
        except OSError as error:
            have = [known for _, known in socket.if_nameindex()]
            raise InvalidInputError(
                f"GLOO_SOCKET_IFNAME is {name!r}, which has no address ({error.strerror}); this "
                f"machine has {have}"
            ) from error
    return socket.inet_ntoa(answer[20:24])


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.split("%")[0]).is_loopback


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise InvalidInputError(f"{name} is {text!r}; expected a number, as torchrun sets it")
    return int(text)
