"""The worker threads of a pipeline: who serves which stage, with how many intra-op threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from pipeline.candidates import Arrangement
from pipeline.modes import LlamaPipelineMode
from pipeline.threads import arrangements, stage_threads, worker_of_stage
from pipeline.worker import JOIN_SECONDS, StageWorker, Ticket

T = TypeVar("T")


class Crew:
    """Persistent workers for a pipeline's stages, a set for each arrangement.

    Args:
        threads: intra-op threads of each stage, for each arrangement that will be used; the first
            is the one to begin with.
    """

    def __init__(self, threads: Mapping[Arrangement, Sequence[int]]) -> None:
        self.arrangement = next(iter(threads))
        self._threads = {arranged: list(counts) for arranged, counts in threads.items()}
        self._workers: dict[Arrangement, list[StageWorker]] = {}
        callers = torch.get_num_threads()
        try:
            for arranged, counts in self._threads.items():
                self._workers[arranged] = _hire(worker_of_stage(arranged, counts), counts)
            for worker in self.all_workers():
                worker.submit(_nothing).result()  # it has set its thread count
            # Threads that meet PyTorch later get the count that was set last: the caller's again.
            torch.set_num_threads(callers)
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(
        cls, mode: LlamaPipelineMode, stage_count: int, threads: int | Sequence[int] | None = None
    ) -> Crew:
        """The crew for a mode; see `stage_threads` for `threads`."""
        return cls(
            {
                arranged: stage_threads(arranged, stage_count, threads)
                for arranged in arrangements(mode, stage_count)
            }
        )

    @property
    def threads(self) -> list[int]:
        """Intra-op threads of each stage, as arranged now."""
        return self._threads[self.arrangement]

    @property
    def arrangements(self) -> list[Arrangement]:
        """Those that there are workers for."""
        return list(self._threads)

    def arrange(self, arrangement: Arrangement) -> None:
        """Let another set of workers serve; only while no stage is at work."""
        assert arrangement in self._threads, f"no workers for {arrangement}"
        self.arrangement = arrangement

    def worker(self, stage: int) -> StageWorker:
        """The worker of a stage; several stages may share one."""
        return self._workers[self.arrangement][stage]

    def shared(self, stage: int, other: int) -> bool:
        """Whether one worker serves two stages."""
        return self.worker(stage) is self.worker(other)

    def all_workers(self) -> list[StageWorker]:
        """Every worker once, in the order of the stages."""
        return list(dict.fromkeys(w for workers in self._workers.values() for w in workers))

    def submit(self, stage: int, work: Callable[[], T]) -> Ticket[T]:
        """Queue work for a stage."""
        return self.worker(stage).submit(work)

    def close(self, timeout: float = JOIN_SECONDS) -> list[str]:
        """End all workers after what they have queued; again is fine.

        They end in the order of the stages, as each may still queue work for the next. Returns the
        names of those that did not end within `timeout` seconds in all.
        """
        deadline = time.monotonic() + timeout
        return [
            worker.name
            for worker in self.all_workers()
            if not worker.close(max(0.0, deadline - time.monotonic()))
        ]


def _hire(worker_of: Sequence[int], threads: Sequence[int]) -> list[StageWorker]:
    """The worker of each stage."""
    workers: dict[int, StageWorker] = {}
    for index in sorted({*worker_of}):
        shared = worker_of.count(index) > 1
        name = "lamella-stages" if shared else f"lamella-stage-{index}"
        workers[index] = StageWorker(name, threads[index])
    return [workers[index] for index in worker_of]


def _nothing() -> None:
    pass
