"""The worker threads of a pipeline: who serves which stage, with how many intra-op threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from pipeline.modes import LlamaPipelineMode
from pipeline.threads import worker_of_stage
from pipeline.worker import JOIN_SECONDS, StageWorker, Ticket

T = TypeVar("T")


class Crew:
    """Persistent workers for a pipeline's stages.

    Args:
        mode: of the pipeline.
        threads: intra-op threads of each stage.
    """

    def __init__(self, mode: LlamaPipelineMode, threads: Sequence[int]) -> None:
        self.threads = list(threads)
        self._worker_of = worker_of_stage(mode, self.threads)
        callers = torch.get_num_threads()
        self._workers: list[StageWorker] = []
        try:
            for index in sorted({*self._worker_of}):
                shared = self._worker_of.count(index) > 1
                name = "lamella-stages" if shared else f"lamella-stage-{index}"
                self._workers.append(StageWorker(name, self.threads[index]))
            for worker in self._workers:
                worker.submit(_nothing).result()  # it has set its thread count
            # Threads that meet PyTorch later get the count that was set last: the caller's again.
            torch.set_num_threads(callers)
        except BaseException:
            self.close()
            raise

    def worker(self, stage: int) -> StageWorker:
        """The worker of a stage; several stages may share one."""
        return self._workers[self._worker_of[stage]]

    def submit(self, stage: int, work: Callable[[], T]) -> Ticket[T]:
        """Queue work for a stage."""
        return self.worker(stage).submit(work)

    def close(self, timeout: float = JOIN_SECONDS) -> list[str]:
        """End all workers after what they have queued; again is fine.

        Returns the names of those that did not end within `timeout` seconds in all.
        """
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            worker.close(timeout=0)
        return [
            worker.name
            for worker in self._workers
            if not worker.close(max(0.0, deadline - time.monotonic()))
        ]


def _nothing() -> None:
    pass
