"""The line of stages over processes: the driver's side, with the first stage in a worker thread."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import torch

from kernels.errors import LamellaError
from pipeline.candidates import Arrangement
from pipeline.distributed.answers import AnswerReader, answer_room
from pipeline.distributed.joining import Member
from pipeline.distributed.orders import Order, OrderWriter
from pipeline.distributed.ports import ReceivePort
from pipeline.distributed.trips import Trip
from pipeline.errors import RankLostError
from pipeline.job import Job

_CLOSE_SECONDS = 30.0


class DistributedLine:
    """A `Line` over ranks.

    One thread tells all ranks of a job and gives it to the stage that is here; another takes in
    what the last rank made of it. When a rank is lost, every job under way fails with that, and
    these threads are left behind: nothing ends what they wait for.

    Args:
        member: the driver's part.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self._stages = member.world.size
        self._heart = member.heart
        self._submitted: SimpleQueue[Job | None] = SimpleQueue()
        self._away: SimpleQueue[Job | None] = SimpleQueue()  # their answers are expected
        self._under_way: dict[int, Job] = {}
        self._vocab_size = member.stage.config.vocab_size
        suspect, cpu = member.heart.suspect, torch.device("cpu")
        last = self._stages - 1
        self._answers = ReceivePort(member.channels.answers, last, last, self._stages, cpu, suspect)
        self._reader = AnswerReader(self._vocab_size, member.epoch, member.offsets, member.recorder)
        self._writer = OrderWriter(member.epoch)
        self._closing = False
        self._lost: RankLostError | None = None
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("lamella-orders", self._order), ("lamella-answers", self._take))
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self._end_with_the_script)
        member.heart.on_loss = self._lose
        if member.heart.lost is not None:  # it was noticed before anyone could be told
            self._lose(member.heart.lost)

    @property
    def threads(self) -> list[int]:
        """Intra-op threads of each stage."""
        return [told["threads"] for told in self._member.told]

    def arrange(self, arrangement: Arrangement) -> None:
        """Every stage has a process of its own, and shares nothing that could be arranged."""

    def submit(self, job: Job) -> None:
        """Send a job on its way, in one step that an interrupt cannot cut in two.

        After `close` it fails.
        """
        if self._closing:
            self._fail(job, 0, LamellaError("the pipeline is closed"))
            return
        self._submitted.put(job)
        if self._lost is not None:
            self._fail_all(self._lost)

    def close(self) -> list[str]:
        """Let all ranks end after what was submitted; those that did not in time. Again is fine."""
        if not self._closing:
            self._closing = True
            self._submitted.put(None)
        if self._lost is not None:
            return []
        late = self._heart.wait_all_left(_CLOSE_SECONDS)
        if self._lost is not None:
            return []
        self._heart.leave()
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS)
        atexit.unregister(self._end_with_the_script)
        return [f"rank {rank}" for rank in late] + self._member.crew.close()

    # Its threads

    def _order(self) -> None:
        number = 0
        try:
            while (job := self._submitted.get()) is not None:
                number = job.number
                self._under_way[number] = job
                if self._lost is not None:
                    self._fail_all(self._lost)
                    continue
                self._start(job)
                del job
            self._tell(self._writer.write(Order(number + 1, 0, None)))
        except Exception as error:
            self._give_up(error)
        self._away.put(None)

    def _start(self, job: Job) -> None:
        call = job.call.jobs[0].number
        try:
            messages = self._writer.write(Order(job.number, call, job.task))
        except Exception as error:  # nobody knows of the job yet
            if self._under_way.pop(job.number, None) is not None:
                self._fail(job, 0, error)
            return
        self._answers.expect(answer_room(job, self._vocab_size))
        self._tell(messages)
        self._away.put(job)
        self._member.crew.submit(0, partial(self._run, Trip(job, call, self._stages)))

    def _tell(self, messages: Sequence[torch.Tensor]) -> None:
        """Send an order to all other ranks."""
        sent: list[tuple[int, Any]] = []
        group = self._member.channels.orders
        rank = 1
        try:
            for rank in range(1, self._stages):
                sent += [(rank, group.send([part], rank, 0)) for part in messages if len(part)]
            for rank, transfer in sent:  # noqa: B007 - the error names it
                transfer.wait()
        except RuntimeError as error:
            raise self._heart.suspect(rank, str(error)) from error

    def _take(self) -> None:
        try:
            while (job := self._away.get()) is not None:
                frame = self._answers.take()
                self._reader.read(frame, job)
                self._answers.give_back(frame)
                self._under_way.pop(job.number, None)
                for _ in range(1, self._stages):
                    job.leave()
                del job
        except Exception as error:
            self._give_up(error)

    def _run(self, trip: Trip) -> None:
        """The first stage's part, in its worker."""
        if self._lost is not None:
            return
        try:
            self._member.loop.run(trip)
        except Exception as error:
            self._give_up(error)

    # Losing a rank

    def _give_up(self, error: Exception) -> None:
        """Something other than a stage failed: the ranks may be out of step, and all end."""
        self._lose(self._heart.fail(error))

    def _lose(self, error: RankLostError) -> None:
        if self._lost is not None:
            return
        self._lost = error
        self._fail_all(error)

    def _fail_all(self, error: RankLostError) -> None:
        """Let everything that was submitted end with the loss."""
        while True:
            try:
                job = self._submitted.get_nowait()
            except Empty:
                break
            if job is not None:
                self._under_way[job.number] = job
        for number in list(self._under_way):
            job = self._under_way.pop(number, None)
            if job is None:  # another thread was faster
                continue
            self._fail(job, error.rank, error)

    def _fail(self, job: Job, stage: int, error: Exception) -> None:
        job.fail(stage, job.task.name, error)
        for _ in range(self._stages):
            job.leave()

    def _end_with_the_script(self) -> None:
        """End the process at once if a rank was lost, at the interpreter's exit.

        What is blocked in a send or receive could keep it from ending. Whatever was registered
        after the line was made has run by then. The exit code is 1, as Python tells nobody which
        one was asked for.
        """
        if self._lost is None:
            return
        try:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):  # one may be closed, or its reader gone
                    stream.flush()
        finally:
            os._exit(1)
