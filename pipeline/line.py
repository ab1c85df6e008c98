"""The line of stages that jobs go down: here each stage has a worker thread of this process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from pipeline.bridges.bridge import Bridge
from pipeline.candidates import Arrangement
from pipeline.crew import Crew
from pipeline.interfaces import Stage
from pipeline.job import Job
from pipeline.stage_loop import StageLoop
from pipeline.timeline import Recorder


class Line(Protocol):
    """Takes jobs through all stages, every stage in the order in which they were submitted."""

    def submit(self, job: Job) -> None:
        """Send a job on its way. It comes to its end whatever happens; `Job.wait` waits for it."""
        ...

    @property
    def threads(self) -> list[int]:
        """Intra-op threads of each stage, as arranged now."""
        ...

    def arrange(self, arrangement: Arrangement) -> None:
        """Let the stages share the machine in another way; only while none is at work."""
        ...

    def close(self) -> list[str]:
        """End after what was submitted; names of what did not end in time. Again is fine."""
        ...


class ThreadLine:
    """A `Line` over stages in worker threads.

    Args:
        stages: in order.
        crew: their workers.
        bridge: between them.
        recorder: told of every span.
    """

    def __init__(
        self, stages: Sequence[Stage], crew: Crew, bridge: Bridge, recorder: Recorder
    ) -> None:
        self._crew = crew
        self._loops = [
            StageLoop(index, stage, bridge.into(index), bridge.out_of(index), recorder)
            for index, stage in enumerate(stages)
        ]

    def submit(self, job: Job) -> None:
        """Queue a job at the first stage, which tells the second, and so on down the line.

        One queue takes it, in one step that an interrupt cannot cut in two.
        """
        self._crew.submit(0, partial(self._run, job, 0))

    def _run(self, job: Job, index: int) -> None:
        following = index + 1
        last = following == len(self._loops)
        in_turn = not last and self._crew.shared(index, following)
        if not last and not in_turn:
            try:
                self._crew.submit(following, partial(self._run, job, following))
            except BaseException as error:  # a worker that was closed too early
                for stage in range(following, len(self._loops)):
                    job.fail(stage, "submit", error)
                    job.leave()
        self._loops[index].run(job)
        if in_turn:
            self._run(job, following)

    @property
    def threads(self) -> list[int]:
        """Intra-op threads of each stage, as arranged now."""
        return list(self._crew.threads)

    def arrange(self, arrangement: Arrangement) -> None:
        """Let other workers serve; nothing changes if there are none for it."""
        if arrangement in self._crew.arrangements:
            self._crew.arrange(arrangement)

    def close(self) -> list[str]:
        """End the workers."""
        return self._crew.close()
