"""Processes as torchrun would start them, without its agent, which takes seconds to start."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
CALM = "10"
"""Seconds of silence that mean a loss, where a test is not about that: the machine may be busy."""


class Ranks:
    """Running ranks; a context manager that leaves none behind.

    Args:
        cases: for `rank_main`.
        size: how many.
        timeout: of the heartbeat, in seconds.
        address: where rank 0 has the store.
        hosts: what comes before each rank's command, such as `ip netns exec`.
        module: to run, and arguments that come before the cases.
    """

    def __init__(
        self,
        cases: list[dict[str, Any]],
        size: int = 2,
        *,
        timeout: str = CALM,
        address: str = "127.0.0.1",
        hosts: Sequence[Sequence[str]] | None = None,
        module: Sequence[str] = ("tests.pipeline.distributed.rank_main",),
    ) -> None:
        port = free_port()
        self.processes: list[subprocess.Popen[str]] = []
        for rank in range(size):
            env = environment() | {
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": "0" if hosts else str(rank),
                "LOCAL_WORLD_SIZE": "1" if hosts else str(size),
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
                "LAMELLA_HEARTBEAT_TIMEOUT": timeout,
            }
            command = [sys.executable, "-m", *module]
            self.processes.append(
                subprocess.Popen(
                    [*(hosts[rank] if hosts else ()), *command, json.dumps(cases)],
                    cwd=ROOT,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def wait_until_running(self) -> None:
        """Until rank 0 says so."""
        assert self.processes[0].stdout is not None
        line = self.processes[0].stdout.readline()
        assert line == "running\n", (line, self.processes[0].communicate(timeout=60)[1])

    def ends(self, ranks: Sequence[int], seconds: float = 40) -> list[tuple[int, str, str]]:
        """(exit code, standard output, standard error) of ranks, once all of them ended."""
        deadline = time.monotonic() + seconds
        ends, late = [], []
        for rank in ranks:
            process = self.processes[rank]
            try:
                out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(rank)
                process.kill()
                out, err = process.communicate()
            ends.append((process.returncode, out, err))
        assert not late, (f"ranks {late} did not end", ends)
        return ends

    def results(self) -> list[Any]:
        """Rank 0's results, once all ranks ended well."""
        ends = self.ends(range(len(self.processes)))
        assert [code for code, _, _ in ends] == [0] * len(ends), ends
        return json.loads(ends[0][1])

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def environment() -> dict[str, str]:
    """Of processes of these tests: nothing that torchrun sets, and one thread unless told."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TORCHELASTIC", "LAMELLA", "GLOO", "OMP"))
    } | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def torchrun(*args: str, size: int, restarts: int = 0) -> list[str]:
    """The command line of torchrun on this machine for a module and its arguments."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(size), "--max-restarts", str(restarts), "-m", *args,
    ]  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as any_socket:
        any_socket.bind(("", 0))
        return any_socket.getsockname()[1]
