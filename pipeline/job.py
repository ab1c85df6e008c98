"""A call on its way through the stages: its jobs, what came out, or why it failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import torch

from kernels.errors import LamellaError
from pipeline.chores import Chore
from pipeline.errors import StageError
from pipeline.hidden import PipelineHidden
from pipeline.trace import StageTrace
from pipeline.work import Work


class Call:
    """Jobs that stand or fall together; once stopped, no stage begins any more of them.

    Args:
        stage_count: how many stages take part.
    """

    def __init__(self, stage_count: int) -> None:
        self.jobs: list[Job] = []
        self.traces = [StageTrace() for _ in range(stage_count)]
        self.stopped = False
        self.sent_ns = time.perf_counter_ns()
        self.ended_ns = 0  # when all stages were through, once `wait` came back

    def job(self, number: int, task: Work | Chore) -> Job:
        """The call's next job, numbered over the pipeline's life."""
        job = Job(number, task, self, len(self.jobs) if isinstance(task, Work) else None)
        self.jobs.append(job)
        return job

    def stop(self) -> None:
        """Let no stage begin anything more. Safe from any thread and from a signal handler."""
        self.stopped = True

    def wait(self) -> None:
        """Block until all stages are through with all jobs, whatever came of them."""
        for job in self.jobs:
            job.wait()
        # A device was through just now; workers told when they were, whenever that is looked at.
        asked = [job.settle() for job in self.jobs]
        last = max((job.ended_ns for job in self.jobs), default=self.sent_ns)
        self.ended_ns = time.perf_counter_ns() if any(asked) else last

    @property
    def failure(self) -> StageError | None:
        """What failed first, in the order of the jobs and of the stages."""
        return next((job.failure for job in self.jobs if job.failure is not None), None)

    def answers(self) -> torch.Tensor:
        """What the last stage answered, in order; empty if nothing was asked.

        Made in the caller's thread, so that it may write into it: stages' own results are inference
        tensors. Raises what failed, or that the call was stopped.
        """
        outputs = self._outputs()
        return torch.cat(outputs) if outputs else torch.empty(0, dtype=torch.int64)

    def tokens(self) -> list[int]:
        """The same where answers are token ids."""
        return [token for output in self._outputs() for token in output.tolist()]

    def _outputs(self) -> list[torch.Tensor]:
        if (failure := self.failure) is not None:
            failure.throw()
        if self.stopped:
            raise LamellaError("the pipeline was closed during the call")
        return [job.output for job in self.jobs if job.output is not None]


class Job:
    """Work or a chore for every stage in turn, and what came of it.

    Args:
        number: counted up over the pipeline's life.
        task: what each stage does.
        call: that the job belongs to.
        microbatch: place in its call; None for chores.
    """

    def __init__(
        self, number: int, task: Work | Chore, call: Call, microbatch: int | None = None
    ) -> None:
        self.number = number
        self.task = task
        self.call = call
        self.microbatch = microbatch
        self.output: torch.Tensor | None = None  # what the last stage answered
        self.hidden: PipelineHidden | None = None  # after the last stage
        self.failure: StageError | None = None  # of the first stage that failed
        self.later: list[Callable[[], None]] = []  # takes down times that devices have to come to
        self.ended_ns = 0
        self._left = len(call.traces)
        self._lock = threading.Lock()
        self._ended: SimpleQueue[None] = SimpleQueue()

    def fail(self, stage: int, operation: str, cause: BaseException) -> None:
        """Note a stage's failure; the first stage's stays. The rest of the call is stopped."""
        error = StageError(stage, operation, cause, self.microbatch)
        with self._lock:
            if self.failure is None or stage < self.failure.stage:
                self.failure = error
        self.call.stop()

    def leave(self) -> None:
        """Called once by every stage when it is through with the job."""
        with self._lock:
            done = self._left == 1
            if done:
                self.ended_ns = time.perf_counter_ns()  # before anyone can see that it is over
            self._left -= 1
        if done:
            self._ended.put(None)

    @property
    def done(self) -> bool:
        """Whether all stages are through with it."""
        return self._left <= 0  # below, if stages came to an end after a rank was lost

    def wait(self) -> None:
        """Block until all stages are through with it, whatever came of it.

        Not on an event: Ctrl-C in its wait can leave its lock taken, and a worker would hang.
        """
        if not self.done:
            self._ended.get()
            self._ended.put(None)  # for whoever else waits

    def settle(self) -> bool:
        """Wait until devices, too, are through, and take down what they took; whether any were."""
        asked = bool(self.later)
        while self.later:
            self.later.pop(0)()
        return asked
