"""The driver: checks calls, sends them down the line as jobs, and undoes what fails.

One call is checked and sent at a time, but stages go on working while the driver does other
things: what it needs to know of the caches stands in its ledger. Whatever writes to a cache goes
down the line, in order with all else.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

import torch

from kernels.errors import InvalidInputError, LamellaError
from model.config import LlamaConfig
from model.stage import DecodeRow
from pipeline.candidates import Arrangement
from pipeline.chores import Chore, Prepare, Release, Reset, Restore, Truncate, Unprepare
from pipeline.errors import RankLostError, StageError
from pipeline.job import Call
from pipeline.ledger import Entry, Ledger
from pipeline.line import Line
from pipeline.modes import LlamaPipelineMode, StageBridge
from pipeline.profile import DecodeProfile
from pipeline.schedule import Plan, plan_decode
from pipeline.stats import DecodeCall, DecodeStats
from pipeline.timeline import Recorder
from pipeline.validation import check_positions
from pipeline.work import Asked, Decode, Piece, Prefill, Work


class PipelineEngine:
    """Runs calls over the stages as transactions. Ids and token ids are checked by the caller.

    Args:
        config: of the whole model.
        mode: of the pipeline.
        line: the stages.
        ledger: of their caches.
        bridge: kind of the links, for profile lines.
        profile: told of every batch call.
        recorder: that the stages write to.
    """

    def __init__(
        self,
        config: LlamaConfig,
        mode: LlamaPipelineMode,
        line: Line,
        ledger: Ledger,
        bridge: StageBridge,
        profile: DecodeProfile,
        recorder: Recorder,
    ) -> None:
        self.config = config
        self.mode = mode
        self.line = line
        self.ledger = ledger
        self.recorder = recorder
        self.stage_count = len(ledger.rooms)
        self.stats = DecodeStats(self.stage_count)
        self.resets = 0
        self.bridge = bridge
        self._profile = profile
        self._numbers = 0
        # Taking and owning it are one step: a signal handler never waits for its own thread.
        self._lock = threading.RLock()
        self._abandoned: deque[str] = deque()
        self._unfinished: Callable[[], None] | None = None  # what an interrupted call still owes
        self._aloft: dict[int, Call] = {}  # calls that append, under way, by identity
        self._broken: str | None = None
        self._closed = False
        self._close_owed = False  # `close` came from within a call, whose end closes the line

    # Calls over all stages

    def prefill(
        self,
        seq_id: str,
        tokens: list[int],
        answer: Asked,
        *,
        all_rows: bool = False,
        keep: bool = True,
    ) -> torch.Tensor:
        """Append tokens to a sequence; the answer for the last (or every) one, [1 or T, ...].

        A sequence that is not kept is released by the next call, or `tidy`.
        """
        with self._ready():
            if not keep:
                self.abandon([seq_id])  # first, as an interrupt may come at any time
            if not tokens:
                raise InvalidInputError(f"prefill of sequence {seq_id!r} called with no tokens")
            pos = self.ledger.lengths([seq_id])[seq_id]
            work = Prefill([Piece(seq_id, tokens, pos)], answer, all_rows)
            self.ledger.check_append(work.appends)
            with self._transaction(work.appends) as call:
                return self._through(call, [work])

    def decode(self, rows: Sequence[DecodeRow], answer: Asked, *, single: bool) -> torch.Tensor:
        """One token for each of B >= 1 sequences; the answers in order, [B, ...].

        `single` is the way of one row that asked for no batch: the profile does not count it.
        """
        with self._ready():
            check_positions(rows, self.ledger.lengths([row.id for row in rows]))
            appends = [(row.id, 1) for row in rows]
            self.ledger.check_append(appends)
            start = time.perf_counter_ns()
            plan = plan_decode(self.mode, self.stage_count, len(rows))
            with self._transaction(appends) as call:
                works = [Decode(rows[part], answer) for part in plan.slices(len(rows))]
                output = self._through(call, works)
                total_ns = time.perf_counter_ns() - start
                self.record(call, len(rows), plan, total_ns, profiled=not single)
                return output

    @contextmanager
    def _transaction(self, appends: Sequence[tuple[str, int]]) -> Iterator[Call]:
        """Around a call: whatever is raised inside, every stage's cache is as before."""
        before = self.ledger.entries(seq_id for seq_id, _ in appends)
        call = Call(self.stage_count)
        with self._undone_if_raised(partial(self._undo, call, before)):
            self._aloft[id(call)] = call
            try:
                self.ledger.append(appends)
                yield call
            finally:
                self._aloft.pop(id(call), None)

    def _undo(self, call: Call, before: Mapping[str, Entry | None]) -> None:
        """Let nothing more of a call begin, and give every stage its lengths back.

        Restoring goes down the line too, so it comes after whatever the stages still do. Twice is
        the same as once. Raises what a stage raises that cannot restore.
        """
        call.stop()
        lengths = {i: None if entry is None else entry.length for i, entry in before.items()}
        if (failure := self._everywhere(Restore(lengths))) is not None:
            raise failure.cause
        self.ledger.restore(before)

    @contextmanager
    def _undone_if_raised(self, undo: Callable[[], None]) -> Iterator[None]:
        self._unfinished = undo
        try:
            yield
        except BaseException:
            self._settle()
            raise
        self._unfinished = None

    def _through(self, call: Call, works: Sequence[Work]) -> torch.Tensor:
        """Take all of a call through the stages, and wait; its answers in order."""
        self._send(call, works)
        call.wait()
        return call.answers()

    def _send(self, call: Call, tasks: Sequence[Work | Chore]) -> None:
        for task in tasks:
            self._numbers += 1
            self.line.submit(call.job(self._numbers, task))

    # Jobs under way while the driver does other things

    def launch(self, works: Sequence[Work]) -> Call:
        """Send works off without waiting; `land` does that.

        A sequence must not be in two calls at once, but for chunks of one prompt in their order.
        Raises `CapacityError` before anything is sent.
        """
        with self._ready():
            self.ledger.append([append for work in works for append in work.appends])
            call = Call(self.stage_count)
            self._aloft[id(call)] = call
            self._send(call, works)
            return call

    def land(self, call: Call) -> None:
        """Wait for a call that was launched; then ask it for its answers.

        It raises what failed in it. Its sequences must be released then, as stages may disagree.
        """
        call.wait()
        if self._aloft.pop(id(call), None) is not None:
            self._note_kept(call)
        if self._closed and call.stopped and call.failure is None:
            raise LamellaError("the pipeline is closed")

    def reserve(self, seq_id: str, tokens: int) -> None:
        """Keep room for a sequence that will be launched. Raises `CapacityError`."""
        with self._ready():
            self.ledger.prepare(seq_id, tokens)

    def let_go(self, ids: Sequence[str]) -> Call:
        """Release sequences without waiting for it."""
        with self._ready():
            self.ledger.release(ids)
            call = Call(self.stage_count)
            self._aloft[id(call)] = call
            self._send(call, [Release(ids)])
            return call

    def arrange(self, arrangement: Arrangement) -> None:
        """Let the stages share the machine in another way, once what is under way is through."""
        with self._ready():
            self._rest()
            self.line.arrange(arrangement)

    def _rest(self) -> None:
        """Wait until no stage is at work: what is sent now comes to its end after all else.

        Calls are not waited for one by one, as an interrupt may have kept a job from being sent.
        """
        if self._aloft:
            self._everywhere(Release(()))
            self._forget(list(self._aloft))

    def _forget(self, calls: Sequence[int]) -> None:
        """Drop calls that are through, whether somebody lands them yet or not."""
        for key in calls:
            if (call := self._aloft.pop(key, None)) is not None:
                self._note_kept(call)

    def _note_kept(self, call: Call) -> None:
        """Have sequences that a stage failed to let go released by the next call."""
        for job in call.jobs:
            if job.failure is not None and isinstance(job.task, Release):
                self.abandon(job.task.ids)

    def record(self, call: Call, rows: int, plan: Plan, total_ns: int, *, profiled: bool) -> None:
        """Count a decode step in the statistics."""
        decode = DecodeCall(rows, plan, call.traces, total_ns)
        if profiled:
            self._profile.record(decode, self.bridge, call.jobs[-1].hidden)
        self.stats.record(decode)

    # The cache

    def prepare(self, seq_id: str, max_tokens: int) -> None:
        """Reserve room for `max_tokens` positions of a sequence on every stage, or on none."""
        if max_tokens < 0:
            raise InvalidInputError(f"max_tokens is {max_tokens}; expected at least 0")
        with self._ready():
            self.ledger.lengths([seq_id])
            before = self.ledger.entries([seq_id])
            with self._undone_if_raised(partial(self._unprepare, seq_id, before)):
                self.ledger.prepare(seq_id, max_tokens)
                if (failure := self._everywhere(Prepare(seq_id, max_tokens))) is not None:
                    raise failure from failure.cause

    def _unprepare(self, seq_id: str, before: Mapping[str, Entry | None]) -> None:
        """Give every stage its former reservation back."""
        entry = before[seq_id]
        chore = Unprepare(seq_id, None if entry is None else entry.reserved)
        if (failure := self._everywhere(chore)) is not None:
            raise failure.cause
        self.ledger.restore(before)

    def truncate(self, seq_id: str, new_len: int) -> None:
        """Shorten a sequence on every stage; where that fails, see `StageError`."""
        if new_len < 0:
            raise InvalidInputError(f"new_len is {new_len}; expected at least 0")
        with self._ready():
            self._on_all(
                Truncate(seq_id, new_len), [seq_id], partial(self.ledger.truncate, seq_id, new_len)
            )

    def release(self, seq_id: str) -> None:
        """Forget a sequence on every stage; where that fails, see `StageError`."""
        with self._ready():
            self._release([seq_id])

    def _release(self, ids: Sequence[str]) -> None:
        self._on_all(Release(ids), ids, partial(self.ledger.release, ids))

    def abandon(self, seq_ids: Iterable[str]) -> None:
        """Have sequences released by the next call; safe wherever a finaliser may run."""
        self._abandoned.extend(seq_ids)

    def tidy(self) -> None:
        """Release what was abandoned now, unless the pipeline is closed, broken or in a call.

        Comes back when all that was under way is through, so that nothing is held any more.
        """
        # An interrupt as a call begins holds the pipeline until the error is gone; it must not be
        # hidden by another.
        if not self._closed and self._broken is None and not self._mine:
            with self._ready():
                self._rest()
                self._release_abandoned()

    def reset(self) -> None:
        """Forget every sequence; also what mends a pipeline that could not restore its caches."""
        with self._ready(mending=True):
            self.resets += 1
            try:
                self._on_all(Reset(), (), self.ledger.reset)
            except StageError as error:
                self._broken = str(error)
                raise
            self._abandoned.clear()
            self._broken = None

    def cache_len(self, seq_id: str) -> int:
        """Committed positions of a sequence, 0 if unknown."""
        with self._ready():
            return self.ledger.lengths([seq_id])[seq_id]

    def kv_capacity(self) -> int:
        """Most positions that one sequence may hold: the least over the stages."""
        with self._ready():
            return self.ledger.capacity

    def sequence_ids(self) -> list[str]:
        """Known sequences, oldest first."""
        with self._ready():
            return self.ledger.ids()

    def _on_all(self, chore: Chore, ids: Sequence[str], book: Callable[[], None]) -> None:
        """Do something that may be done twice; if it is interrupted, the next call finishes it."""
        self._unfinished = partial(self._do_on_all, chore, ids, book)
        try:
            self._do_on_all(chore, ids, book)
        except StageError:
            self._unfinished = None  # tried on every stage; doing it again would fail again
            raise
        self._unfinished = None

    def _do_on_all(self, chore: Chore, ids: Sequence[str], book: Callable[[], None]) -> None:
        failure = self._everywhere(chore)
        book()
        if failure is not None:
            for seq_id in ids:
                self.ledger.torn[seq_id] = (
                    f"stage {failure.stage} failed to {chore.name} sequence {seq_id!r}; release "
                    "it, as its stages no longer agree"
                )
            raise failure from failure.cause

    def _everywhere(self, chore: Chore) -> StageError | None:
        """Do a chore on every stage, whatever it does on the others; the first stage's failure."""
        call = Call(self.stage_count)
        self._send(call, [chore])
        call.wait()
        if (failure := call.failure) is not None and isinstance(failure.cause, RankLostError):
            raise failure.cause
        return failure

    # Life

    @contextmanager
    def _ready(self, *, mending: bool = False) -> Iterator[None]:
        """One call at a time, on an open pipeline that owes nothing."""
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
            try:
                yield
            finally:
                if self._close_owed:
                    self._close_owed = False
                    self._close_line()

    @property
    def _mine(self) -> bool:
        """Whether this thread holds the pipeline, as a signal handler within a call finds it."""
        return self._lock._is_owned()  # type: ignore[attr-defined]  # as `threading.Condition` asks

    def _settle(self) -> None:
        """Undo or finish what a call left; if that is interrupted too, the next call does it."""
        if self._unfinished is None:
            return
        try:
            self._unfinished()
        except RankLostError:  # every call says so from now on, and nothing mends it
            self._unfinished = None
            raise
        except Exception as error:
            self._broken = f"caches could not be restored ({type(error).__name__}: {error})"
            self._unfinished = None
            raise LamellaError(self._broken) from error
        self._unfinished = None

    def _release_abandoned(self) -> None:
        if not self._abandoned or self._broken is not None:
            return
        ids, aloft = list(self._abandoned), list(self._aloft)
        try:
            self._release(ids)
        except StageError as error:  # it is not this call's, and is tried again with the next
            warnings.warn(f"sequences that are done with are kept: {error}", stacklevel=5)
            return
        for _ in ids:  # only now, as an interrupt may have come before
            self._abandoned.popleft()
        self._forget(aloft)  # they were sent before the release, so they are through

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Stop what is under way, end the workers, refuse further calls; again is fine.

        From within a call, as a signal handler may come, it returns at once and the call's end
        ends the workers.
        """
        self._closed = True
        for call in list(self._aloft.values()):
            call.stop()
        if self._mine:
            self._close_owed = True
            return
        with self._alone():
            self._close_line()

    def _close_line(self) -> None:
        if late := self.line.close():
            warnings.warn(f"still at work after close: {late}", ResourceWarning, stacklevel=4)
