"""What all ranks but the driver's do: run their stage as the driver says, until it ends them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

from kernels.errors import InvalidInputError
from pipeline.distributed.joining import Member, join
from pipeline.distributed.orders import FIRST_WORDS, OrderReader
from pipeline.distributed.request import LoadRequest
from pipeline.distributed.trips import Trip
from pipeline.distributed.world import World
from pipeline.errors import RankLostError
from pipeline.job import Call

_LAST_WORDS_SECONDS = 0.1
"""Time for other ranks to read who was lost, before this one closes its connections."""


def serve(path: str | os.PathLike[str] | None = None, **options: Any) -> None:
    """Run this rank's stage until the driver closes its pipeline; for all ranks but 0.

    Takes what `LlamaPipeline.from_pretrained` takes, and must be given the same. If a rank is lost,
    or this one fails outside its stage, the process says so on standard error and ends with exit
    code 1, wherever it is: what waits for a dead rank can be ended in no other way. Ctrl-C, which
    all processes get, is left to the driver once all ranks are ready.

    Raises what `from_pretrained` raises, and `InvalidInputError` where torchrun started no other
    process, or in the driver's.
    """
    world = World.of_environment()
    if world is None or world.drives:
        where = "there is one process" if world is None else "rank 0 has the pipeline"
        raise InvalidInputError(
            f"serve is for ranks 1 and up of those that torchrun started, but {where}"
        )
    server = _Server(join(world, LoadRequest(path, **options), _end_the_process))
    with _ignoring_interrupts():
        server.run()


class _Server:
    """Takes orders in one thread and runs them in the stage's worker."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._ended = threading.Event()

    def run(self) -> None:
        thread = threading.Thread(target=self._take_orders, name="lamella-orders", daemon=True)
        thread.start()
        self._ended.wait()  # not the thread itself: what it waits in knows no interrupts
        self._member.crew.close()
        self._member.heart.leave()

    def _take_orders(self) -> None:
        member = self._member
        reader = OrderReader(member.epoch)
        first = torch.zeros(FIRST_WORDS, dtype=torch.int64)
        try:
            while True:
                self._receive(first)
                second = torch.empty(reader.left(first), dtype=torch.int64)
                if len(second):
                    self._receive(second)
                order = reader.read(first, second)
                if order.task is None:
                    member.crew.submit(0, member.loop.drain).result()
                    break
                job = Call(member.world.size).job(order.number, order.task)
                trip = Trip(job, order.call, member.world.size)
                if member.loop.link_in is not None:
                    member.loop.link_in.expect(trip)
                member.crew.submit(0, partial(self._run, trip))
            self._ended.set()
        except BaseException as error:
            member.heart.fail(error)  # which ends the process

    def _run(self, trip: Trip) -> None:
        """One job, in the worker."""
        if self._member.heart.lost is not None:  # the process is about to end
            return
        try:
            self._member.loop.run(trip)
        except BaseException as error:  # not a stage's, which are the driver's to hear of
            self._member.heart.fail(error)

    def _receive(self, words: torch.Tensor) -> None:
        try:
            self._member.channels.orders.recv([words], 0, 0).wait()
        except RuntimeError as error:
            raise self._member.heart.suspect(0, str(error)) from error


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Within, Ctrl-C does nothing; only a main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _end_the_process(error: RankLostError) -> None:
    """Called by the heartbeat; whatever else this process does can wait for ever.

    It ends even where nobody reads any more what it writes.
    """
    try:
        with suppress(Exception):
            if error.__cause__ is not None:
                traceback.print_exception(error.__cause__)
            print(f"error: {error}", file=sys.stderr, flush=True)
        with suppress(Exception):
            if sys.stdout is not None:
                sys.stdout.flush()
        time.sleep(_LAST_WORDS_SECONDS)
    finally:
        os._exit(1)
