"""Stages, workers, bridge and transactions put together: every call of a pipeline ends up here.

One call runs at a time. While none does, no stage is at work, so the caller's thread may read
lengths and capacities itself; whatever writes goes through the stages' workers.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

import torch

from kernels.errors import InvalidInputError, LamellaError
from model.stage import DecodeRow
from pipeline.bridge import HostBridge
from pipeline.crew import Crew
from pipeline.errors import StageError
from pipeline.interfaces import Stage
from pipeline.modes import LlamaPipelineMode
from pipeline.profile import DecodeProfile
from pipeline.schedule import Flight, StageLoop, cut, plan_decode
from pipeline.stats import DecodeCall, DecodeStats
from pipeline.transaction import (
    Transaction,
    check_append,
    common_lengths,
    restore_reservation,
)
from pipeline.validation import check_positions
from pipeline.work import Answer, Prefill


class PipelineEngine:
    """Runs calls over the stages as transactions. Ids and token ids are checked by the caller."""

    def __init__(
        self,
        stages: Sequence[Stage],
        mode: LlamaPipelineMode,
        crew: Crew,
        bridge: HostBridge,
        profile: DecodeProfile,
    ) -> None:
        self.stages = tuple(stages)
        self.mode = mode
        self.crew = crew
        self.bridge = bridge
        self.stats = DecodeStats(len(self.stages))
        self._profile = profile
        self._lock = threading.Lock()
        self._owner: int | None = None  # the thread whose call is under way
        self._abandoned: deque[str] = deque()
        self._unfinished: Callable[[], None] | None = None  # what an interrupted call still owes
        self._flight: Flight | None = None
        self._broken: str | None = None
        self._closed = False
        self._close_owed = False  # `close` came from within a call, whose end closes the crew

    # Calls over all stages

    def prefill(
        self, seq_id: str, tokens: list[int], answer: Answer, *, all_rows: bool = False
    ) -> torch.Tensor:
        """Append tokens to a sequence; the answer for the last (or every) one, [1 or T, ...]."""
        with self._ready():
            if not tokens:
                raise InvalidInputError(f"prefill of sequence {seq_id!r} called with no tokens")
            work = Prefill(seq_id, tokens, all_rows)
            lengths = common_lengths(self.stages, [seq_id])
            check_append(self.stages, work.appends)
            flight = Flight([work], answer, len(self.stages), self.bridge)
            with self._transaction(flight, lengths):
                return self._fly(flight)

    def decode(self, rows: Sequence[DecodeRow], answer: Answer, *, single: bool) -> torch.Tensor:
        """One token for each of B >= 1 sequences; the answers in order, [B, ...].

        `single` is the way of one row that asked for no batch: the profile does not count it.
        """
        with self._ready():
            lengths = common_lengths(self.stages, [row.id for row in rows])
            check_positions(rows, lengths)
            check_append(self.stages, [(row.id, 1) for row in rows])
            start = time.perf_counter_ns()
            plan = plan_decode(self.mode, len(self.stages), len(rows))
            flight = Flight(cut(rows, plan), answer, len(self.stages), self.bridge)
            with self._transaction(flight, lengths):
                output = self._fly(flight)
                total_ns = time.perf_counter_ns() - start
                call = DecodeCall(len(rows), plan, flight.traces, total_ns)
                if not single:
                    self._profile.record(call, self.bridge.name, flight.hidden)
                self.stats.record(call)
                return output

    @contextmanager
    def _transaction(self, flight: Flight, lengths: dict[str, int]) -> Iterator[None]:
        """Around a flight: whatever is raised inside, every stage's cache is as before."""
        transaction = Transaction(self.stages, self.crew, self.bridge, lengths, flight)
        with self._undone_if_raised(transaction.roll_back):
            self._flight = flight
            try:
                yield
            finally:
                self._flight = None  # before the undoing, which stops the flight itself

    @contextmanager
    def _undone_if_raised(self, undo: Callable[[], None]) -> Iterator[None]:
        self._unfinished = undo
        try:
            yield
        except BaseException:
            self._settle()
            raise
        self._unfinished = None

    def _fly(self, flight: Flight) -> torch.Tensor:
        """Take a flight through all stages; its answers in order."""
        tickets = [
            self.crew.submit(index, self._loop(flight, index, stage).run)
            for index, stage in enumerate(self.stages)
        ]
        for ticket in reversed(tickets):  # the last stage ends last
            ticket.wait()
        if flight.failure is not None:
            raise flight.failure from flight.failure.cause
        if len(flight.outputs) < len(flight.microbatches):
            raise LamellaError("the pipeline was closed during the call")
        # Made in this thread, so that callers may write into it: the stages' own results are
        # inference tensors.
        return torch.cat(flight.outputs)

    def _loop(self, flight: Flight, index: int, stage: Stage) -> StageLoop:
        links = self.bridge.into(index), self.bridge.out_of(index)
        return StageLoop(flight, index, stage, self.crew.worker(index), *links)

    # The cache

    def prepare(self, seq_id: str, max_tokens: int) -> None:
        """Reserve room for `max_tokens` positions of a sequence on every stage, or on none."""
        if max_tokens < 0:
            raise InvalidInputError(f"max_tokens is {max_tokens}; expected at least 0")
        with self._ready():
            length = common_lengths(self.stages, [seq_id])[seq_id]
            if max_tokens > length:
                check_append(self.stages, [(seq_id, max_tokens - length)])
            reserved = [stage.cache.reserved_blocks(seq_id) for stage in self.stages]
            with self._undone_if_raised(partial(self._unprepare, seq_id, reserved)):
                self._everywhere("prepare", lambda stage: stage.prepare(seq_id, max_tokens))

    def _unprepare(self, seq_id: str, reserved: Sequence[int | None]) -> None:
        """Give every stage its former reservation back; None where it did not know the id."""
        tickets = [
            self.crew.submit(
                index, partial(restore_reservation, self.stages[index], seq_id, blocks)
            )
            for index, blocks in enumerate(reserved)
        ]
        for ticket in tickets:
            ticket.result()

    def truncate(self, seq_id: str, new_len: int) -> None:
        """Shorten a sequence on every stage; where that fails, see `StageError`."""
        if new_len < 0:
            raise InvalidInputError(f"new_len is {new_len}; expected at least 0")
        with self._ready():
            self._on_all("truncate", lambda stage: stage.truncate(seq_id, new_len))

    def release(self, seq_id: str) -> None:
        """Forget a sequence on every stage; where that fails, see `StageError`."""
        with self._ready():
            self._on_all("release", partial(_release, seq_id))

    def abandon(self, seq_ids: Sequence[str]) -> None:
        """Have sequences released by the next call; safe wherever a finaliser may run."""
        self._abandoned.extend(seq_ids)

    def tidy(self) -> None:
        """Release what was abandoned now, unless the pipeline is closed or broken."""
        if self._abandoned and not self._closed and self._broken is None:
            with self._ready():
                pass

    def reset(self) -> None:
        """Forget every sequence; also what mends a pipeline that could not restore its caches."""
        with self._ready(mending=True):
            self._on_all("reset", lambda stage: stage.reset())
            self._broken = None

    def cache_len(self, seq_id: str) -> int:
        """Committed positions of a sequence, 0 if unknown."""
        with self._ready():
            return common_lengths(self.stages, [seq_id])[seq_id]

    def kv_capacity(self) -> int:
        """Most positions that one sequence may hold: the least over the stages."""
        with self._ready():
            return min(stage.kv_capacity() for stage in self.stages)

    def sequence_ids(self) -> list[str]:
        """Known sequences, oldest first."""
        with self._ready():
            return self.stages[0].cache.sequence_ids()

    def _on_all(self, operation: str, work: Callable[[Stage], None]) -> None:
        """Do something that may be done twice; if it is interrupted, the next call finishes it."""
        self._unfinished = partial(self._everywhere, operation, work)
        try:
            self._everywhere(operation, work)
        except StageError:
            self._unfinished = None  # tried on every stage; doing it again would fail again
            raise
        self._unfinished = None

    def _everywhere(self, operation: str, work: Callable[[Stage], None]) -> None:
        """Do `work` on every stage, whatever the others do; then raise the first failure."""
        tickets = [
            self.crew.submit(index, partial(work, stage)) for index, stage in enumerate(self.stages)
        ]
        for ticket in tickets:
            ticket.wait()
        for index, ticket in enumerate(tickets):
            if (error := ticket.error) is not None:
                raise StageError(index, operation, error) from error

    # Life

    @contextmanager
    def _ready(self, *, mending: bool = False) -> Iterator[None]:
        """One call at a time, on an open pipeline whose stages are settled."""
        if self._mine:
            raise LamellaError("the pipeline is in the middle of another call of this thread")
        with self._alone():
            if self._closed:
                raise LamellaError("the pipeline is closed")
            with suppress(LamellaError) if mending else nullcontext():
                self._settle()
                self._release_abandoned()
            if self._broken is not None and not mending:
                raise LamellaError(f"{self._broken}; reset() makes the pipeline usable again")
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the pipeline; at the end, do what a `close` from within left to do."""
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                if self._close_owed:
                    self._close_owed = False
                    self._close_crew()
                self._owner = None

    @property
    def _mine(self) -> bool:
        """Whether this thread holds the pipeline, as a signal handler within a call finds it."""
        return self._owner == threading.get_ident() and self._lock.locked()

    def _settle(self) -> None:
        """Undo or finish what a call left; if that is interrupted too, the next call does it."""
        if self._unfinished is None:
            return
        try:
            self._unfinished()
        except Exception as error:
            self._broken = f"caches could not be restored ({type(error).__name__}: {error})"
            self._unfinished = None
            raise LamellaError(self._broken) from error
        self._unfinished = None

    def _release_abandoned(self) -> None:
        while self._abandoned and self._broken is None:
            seq_id = self._abandoned.popleft()
            self._on_all("release", partial(_release, seq_id))

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Stop a call that is under way, end the workers, refuse further calls; again is fine.

        From within a call, as a signal handler may come, it returns at once and the call's end
        ends the workers.
        """
        self._closed = True
        under_way = self._flight
        if under_way is not None:
            under_way.stop()
        if self._mine:
            self._close_owed = True
            return
        with self._alone():
            self._close_crew()

    def _close_crew(self) -> None:
        if late := self.crew.close():
            warnings.warn(f"still at work after close: {late}", ResourceWarning, stacklevel=4)


def _release(seq_id: str, stage: Stage) -> None:
    stage.release(seq_id)
