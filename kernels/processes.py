"""Jobs in fresh Python processes: a line of JSON to standard input, its result a line back.

Kernels are decorated once a process, for the interpreter or for a compiler, so what needs the one
runs beside what has the other. A process ends when its standard input does, or when whoever started
it is gone, even in the middle of a job: none is left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

Job = dict[str, Any]
Result = dict[str, Any]

JOB_SECONDS = 600.0  # far more than any sound job takes

_ROOT = Path(__file__).parents[1]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GRACE_SECONDS = 2.0


class Crew:
    """Up to `count` processes of `python -m module`, each doing one job after another.

    `environment` is laid over this process's own; None removes a variable. `root` is the folder
    whose packages they import (default: this one's), and which they run in if it is given; the
    current folder is no place to import from. A job may take `job_seconds`, its process's start
    included; one that takes longer ends with its process.
    """

    def __init__(
        self,
        module: str,
        count: int = 1,
        environment: Mapping[str, str | None] | None = None,
        root: Path | None = None,
        job_seconds: float = JOB_SECONDS,
    ) -> None:
        self._command = [sys.executable, "-P", "-m", module]
        self._environment = child_environment(environment or {}, root)
        self._root = root
        self._job_seconds = job_seconds
        # Linux takes the thread that started a process for its parent: one that lasts.
        self._starter = ThreadPoolExecutor(1)
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
        if error is not None:
            # None starts from now on, and one that is starting is known when the rest is killed.
            self._starter.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            if process is not None:
                if error is not None:
                    process.kill()
                _end(process)
        self._starter.shutdown(wait=False)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        """Each job with its result, in the order in which they end.

        The result of a job that raised, took too long, or whose process died is `{"error": why}`.
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
            except (OSError, RuntimeError, CancelledError) as error:  # the latter: closed meanwhile
                result = {"error": in_words(error)}
            done.put((job, result))

    def _ask(self, index: int, job: Job) -> Result:
        process = self._processes[index]
        if process is None:
            process = self._starter.submit(self._start, index).result()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()
        limit = threading.Timer(self._job_seconds, _kill, (process, late))
        limit.daemon = True
        limit.start()
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            limit.cancel()
        if late.is_set() or not line.endswith("\n"):
            self._processes[index] = None
            code = _end(process)
            if late.is_set():
                return {"error": f"took longer than {self._job_seconds:g} s"}
            return {"error": f"the process ended with exit code {code}"}
        result: Result = json.loads(line)
        return result

    def _start(self, index: int) -> subprocess.Popen[str]:
        process = self._processes[index] = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
            cwd=self._root,
        )
        return process


def serve(handle: Callable[[Job], Result]) -> None:
    """Answer jobs from standard input to its end; what `handle` prints goes to standard error.

    A job still under way when the input ends, or when the parent is gone, ends with this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this one
    if sys.platform == "linux":  # for a loop in native code, which lets no other thread run
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    jobs, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # jobs are not for what a kernel under work reads
    os.close(nothing)
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_watch, args=(jobs, lines), daemon=True).start()
    while (line := lines.get()) is not None:
        try:
            result = handle(json.loads(line))
        except (Exception, SystemExit) as error:  # whatever a kernel under work may raise
            result = {"error": in_words(error)}
        try:
            answers.write(json.dumps(result) + "\n")
            answers.flush()
        except OSError:
            os._exit(1)  # nobody is there to hear


def _watch(jobs: TextIO, lines: queue.SimpleQueue[str | None]) -> None:
    for line in jobs:
        lines.put(line)
    lines.put(None)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)  # in the middle of a job that nobody waits for


def _kill(process: subprocess.Popen[str], late: threading.Event) -> None:
    late.set()
    process.kill()


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


def child_environment(
    changes: Mapping[str, str | None], root: Path | None = None
) -> dict[str, str]:
    """This process's environment under `changes`, for a process that imports from `root`."""
    merged = {**os.environ, **changes}
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    merged["PYTHONPATH"] = os.pathsep.join([str(root or _ROOT), *paths])
    return {name: value for name, value in merged.items() if value is not None}
