"""Jobs in fresh Python processes: a line of JSON to standard input, its result a line back.

Kernels are decorated once a process, for the interpreter or for a compiler, so what needs the one
runs beside what has the other. A process ends when its standard input does: none is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

Job = dict[str, Any]
Result = dict[str, Any]

_ROOT = Path(__file__).parents[1]


class Crew:
    """Up to `count` processes of `python -m module`, each doing one job after another.

    `environment` is laid over this process's own; None removes a variable. `root` is the folder
    whose packages they import (default: this one's), and which they run in if it is given.
    """

    def __init__(
        self,
        module: str,
        count: int = 1,
        environment: Mapping[str, str | None] | None = None,
        root: Path | None = None,
    ) -> None:
        self._command = [sys.executable, "-m", module]
        self._environment = _environment(environment or {}, root)
        self._root = root
        self._processes: list[subprocess.Popen[str] | None] = [None] * count
        self._closed = False

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        for process in self._processes:
            if process is not None:
                if error is not None:
                    process.kill()
                _end(process)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        """Each job with its result, in the order in which they end.

        The result of a job that raised, or whose process died, is `{"error": why}`.
        """
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        done: queue.SimpleQueue[tuple[Job, Result]] = queue.SimpleQueue()
        for index in range(min(len(self._processes), len(jobs))):
            threading.Thread(target=self._work, args=(index, waiting, done), daemon=True).start()
        for _ in jobs:
            yield done.get()

    def _work(
        self,
        index: int,
        waiting: queue.SimpleQueue[Job],
        done: queue.SimpleQueue[tuple[Job, Result]],
    ) -> None:
        while not self._closed:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                result = self._ask(index, job)
            except OSError as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            done.put((job, result))

    def _ask(self, index: int, job: Job) -> Result:
        process = self._processes[index]
        if process is None:
            process = self._processes[index] = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self._environment,
                cwd=self._root,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self._processes[index] = None
            return {"error": f"the process ended with exit code {_end(process)}"}
        result: Result = json.loads(line)
        return result


def serve(handle: Callable[[Job], Result]) -> None:
    """Answer jobs from standard input to its end; what `handle` prints goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this one
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            result = handle(json.loads(line))
        except Exception as error:  # whatever a kernel under work may raise
            result = {"error": in_words(error)}
        answers.write(json.dumps(result) + "\n")
        answers.flush()


def in_words(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end(process: subprocess.Popen[str]) -> int:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # a broken pipe: the process is gone already
                stream.close()
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _environment(changes: Mapping[str, str | None], root: Path | None) -> dict[str, str]:
    merged = {**os.environ, **changes}
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # A given root goes first; this one's last, as what was put in front of it is meant to win.
    paths = [str(root), *paths] if root is not None else [*paths, str(_ROOT)]
    merged["PYTHONPATH"] = os.pathsep.join(paths)
    return {name: value for name, value in merged.items() if value is not None}
