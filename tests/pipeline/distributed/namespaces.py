"""Two hosts on one machine: network namespaces with a cable between them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Host:
    """A network namespace with one address and one end of the cable."""

    name: str
    address: str
    cable: str

    @property
    def command(self) -> list[str]:
        """What comes before a command to run it there."""
        return ["ip", "netns", "exec", self.name]

    def unplug(self) -> None:
        """Take the link down: neither side hears of the other any more."""
        ip("-n", self.name, "link", "set", self.cable, "down")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two connected hosts; the first one's name, "lamella-first", is its loopback to itself.

    So it is on many machines, whose own name stands in /etc/hosts. Skips where namespaces are not
    permitted.
    """
    mark = f"lm{os.getpid()}"
    net = f"10.{os.getpid() // 250 % 250}.{os.getpid() % 250}"
    hosts = (Host(f"{mark}a", f"{net}.1", f"{mark}x"), Host(f"{mark}b", f"{net}.2", f"{mark}y"))
    names = [Path("/etc/netns") / host.name for host in hosts]
    try:
        try:
            for host in hosts:
                ip("netns", "add", host.name)
            ip("link", "add", hosts[0].cable, "type", "veth", "peer", "name", hosts[1].cable)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces are not permitted: {error}")
        for host in hosts:
            ip("link", "set", host.cable, "netns", host.name)
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable)
            for device in ("lo", host.cable):
                ip("-n", host.name, "link", "set", device, "up")
        for folder, first in zip(names, ("127.0.0.1", hosts[0].address), strict=True):
            folder.mkdir(parents=True)  # `ip netns exec` lays these over /etc
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{first} lamella-first\n")
        yield hosts
    finally:
        for host, folder in zip(hosts, names, strict=True):
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)


def ip(*args: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)
