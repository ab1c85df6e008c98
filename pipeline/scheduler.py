"""Continuous batching: who runs, who waits, and what is sent down the line next.

Room for a whole completion is reserved when a prompt is let in, so a running sequence never has to
make way. Prompts are let in in their order, as soon as a finished sequence leaves room, and
prefilled in chunks that flow through the stages between decode steps. Running sequences are in
groups: one, of which one step is under way at a time, or several, each with a step of its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kernels.errors import CapacityError, InvalidInputError
from model.sampling import SamplingParams
from model.stopping import StopWatch
from pipeline.choosing import next_tokens
from pipeline.engine import PipelineEngine
from pipeline.errors import StageError
from pipeline.groups import Group, Groups
from pipeline.job import Call
from pipeline.modes import LlamaPipelineMode
from pipeline.prompts import Prompt
from pipeline.sequences import Completion, GenerationEvent, Rate, Running
from pipeline.steering import Steering, Step
from pipeline.work import Decode, Prefill

CONTINUOUS = LlamaPipelineMode.CONTINUOUS


@dataclass(frozen=True)
class Limits:
    """What a run may take.

    Args:
        max_new_tokens: of each prompt.
        max_batch: sequences at once.
        prefill_chunk: most tokens of one prefill.
    """

    max_new_tokens: int
    max_batch: int
    prefill_chunk: int


@dataclass
class _Flight:
    """A call that was sent off: a decode step of a group, a prefill, or a release."""

    call: Call
    members: Sequence[Running] = ()
    group: Group | None = None
    step: Step | None = None
    tokens: int = 0  # that a prefill appends
    ends: Sequence[Running] = ()  # whose prompts are complete with it


class Scheduler:
    """Runs prompts to their ends.

    Args:
        engine: of the pipeline.
        steering: says how decode steps are run, and is told what they took.
        prompts: all of them fit on their own.
        sampling: how tokens are drawn.
        limits: on the run.
        watch: makes the watch of a new sequence.
        own_id: makes the id of a new sequence.
        drawn: tokens that an earlier run drew, by prompt; the same are taken again, see `Running`.
        report: whether a failing step ends its own sequences with an error instead of the run.
    """

    def __init__(
        self,
        engine: PipelineEngine,
        steering: Steering,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        limits: Limits,
        *,
        watch: Callable[[], StopWatch],
        own_id: Callable[[], str],
        drawn: Mapping[int, Sequence[int]] | None = None,
        report: bool = False,
    ) -> None:
        self._engine = engine
        self._steering = steering
        self._sampling = sampling
        self._limits = limits
        self._watch = watch
        self._own_id = own_id
        self._drawn = drawn or {}
        self._report = report
        self._resets = engine.resets
        self._waiting = deque(prompts)
        self._entering: deque[Running] = deque()  # let in, not all of their prompt sent
        self._groups = Groups()
        self._flights: deque[_Flight] = deque()  # in the order in which they land
        self._full = False  # no room when last asked, and nobody left since
        self._landed_ns = 0  # when the last work was through
        self._worked_ns = 0  # time with something under way, the caller's pauses left out
        self._prefilled_last = False
        self._trouble: Exception | None = None
        self._fed = False  # since the last landing
        self._refused: list[GenerationEvent] = []  # not yet given out
        self.held: list[str] = []  # ids of sequences that take room
        self.completions: list[Completion] = []
        self.prefill_rate, self.decode_rate = Rate(), Rate()
        self.running_max = 0

    @property
    def done(self) -> bool:
        """Whether every prompt has come to its end."""
        return not (self._waiting or self._flights or self._trouble or self._refused or self.held)

    def step(self) -> list[GenerationEvent]:
        """Keep the stages busy and wait for what lands next; the tokens that it brings."""
        if self._trouble is not None:
            raise self._trouble
        if self._engine.resets != self._resets:
            raise InvalidInputError("the pipeline was reset during generate")
        if not self._flights:
            self._feed()
        self._fed = False
        events = self._land(self._flights.popleft()) if self._flights else []
        self._feed_ahead()
        refused, self._refused = self._refused, []
        if self._trouble is not None and not (events or refused):
            raise self._trouble
        return events + refused

    def stop(self) -> list[str]:
        """Let nothing that is under way begin any more; the ids that are to be released.

        They stay in `held`, as an interrupt may come before they are passed on.
        """
        for flight in self._flights:
            flight.call.stop()
        self._flights.clear()
        return list(self.held)

    # What to send

    def _feed_ahead(self) -> None:
        """Feed before the caller looks at the events; if that fails, they come first."""
        if self._fed:
            return
        self._fed = True
        try:
            self._feed()
        except Exception as error:
            self._trouble = error

    def _feed(self) -> None:
        """Send all that should be under way now."""
        self._admit()
        way = self._steering.way(self._groups.members)
        self._groups.resize(way.groups if way.mode is CONTINUOUS else 1)
        while self._prefill_is_next(way.mode) and self._launch_prefill():
            pass
        while self._decode_may_go(way.mode) and (group := self._groups.next_idle()) is not None:
            self._launch_decode(group)
        if way.mode is CONTINUOUS and self._prefills_aloft() == 0:
            self._launch_prefill()
        self._count()

    def _count(self) -> None:
        """Note for the timeline how things stand."""
        now = time.perf_counter_ns()
        for name, value in (
            ("groups in flight", self._groups.aloft),
            ("running", len(self._groups)),
            ("waiting", len(self._waiting) + len(self._entering)),
            ("free blocks", self._engine.ledger.free_blocks(0)),
        ):
            self._engine.recorder.count(name, now, value)

    def _prefill_is_next(self, mode: LlamaPipelineMode) -> bool:
        """Whether to prefill before decoding on; else prefills and decode steps take turns."""
        if not self._entering:
            return False
        if self._filling():
            return self._groups.aloft == 0 and self._prefills_aloft() < self._engine.stage_count + 1
        if mode is CONTINUOUS or self._prefilled_last:
            return False
        return not any(flight.members for flight in self._flights)

    def _filling(self) -> bool:
        """Whether running sequences wait until more of them run.

        While more enter than run, decode steps would read all weights for few rows. For a prompt of
        several chunks nobody waits.
        """
        if len(self._entering) <= len(self._groups):
            return False
        return not len(self._groups) or (len(self._entering[0].given) <= self._limits.prefill_chunk)

    def _decode_may_go(self, mode: LlamaPipelineMode) -> bool:
        if mode is CONTINUOUS:
            return not self._filling()
        return not any(flight.tokens or flight.group for flight in self._flights)

    def _prefills_aloft(self) -> int:
        return sum(flight.tokens > 0 for flight in self._flights)

    def _admit(self) -> None:
        """Let prompts in, in their order, as long as there is room."""
        while self._waiting and not self._full and len(self.held) < self._limits.max_batch:
            prompt = self._waiting[0]
            seq_id = self._own_id()
            self.held.append(seq_id)
            try:
                self._engine.reserve(seq_id, prompt.positions(self._limits.max_new_tokens))
            except CapacityError as error:
                self.held.remove(seq_id)
                if not self.held:
                    self._refuse(prompt, error)
                    continue
                self._full = True
                return
            self._waiting.popleft()
            drawn = deque(self._drawn.get(prompt.index, ()))
            self._entering.append(Running(seq_id, prompt, self._watch(), drawn))

    def _refuse(self, prompt: Prompt, error: CapacityError) -> None:
        """Say that the next prompt does not fit though nothing of this run takes room."""
        message = (
            f"prompt {prompt.index} does not fit beside the sequences that the pipeline holds "
            f"already: {error}"
        )
        if not self._report:
            raise CapacityError(message) from error
        self._waiting.popleft()
        self.completions.append(Completion(prompt.given, "", [], "error", prompt.index, message))
        self._refused.append(GenerationEvent(prompt.index, None, "", "error"))

    def _launch_prefill(self) -> bool:
        """Send the next chunk of a long prompt, or several short prompts; False if none is left."""
        if not self._entering:
            return False
        chunk = self._limits.prefill_chunk
        members, budget = [self._entering[0]], chunk
        if len(members[0].given) > chunk:
            if members[0].sent + chunk >= len(members[0].given):
                self._entering.popleft()
        else:
            members = []
            while self._entering and len(self._entering[0].given) <= budget:
                members.append(self._entering.popleft())
                budget -= len(members[-1].given)
        pieces = [member.piece(chunk) for member in members]
        ends = [member for member, piece in zip(members, pieces, strict=True) if piece.ends]
        work = Prefill(pieces, next_tokens(self._sampling, ends))
        tokens = work.row_count
        self._flights.append(
            _Flight(self._engine.launch([work]), members, tokens=tokens, ends=ends)
        )
        self._prefilled_last = True
        return True

    def _launch_decode(self, group: Group) -> None:
        members = list(group.members)
        step = self._steering.step(len(members))
        rows = [member.row() for member in members]
        works = [
            Decode(rows[part], next_tokens(self._sampling, members[part]))
            for part in step.plan.slices(len(rows))
        ]
        call = self._engine.launch(works)
        group.aloft = True
        self._prefilled_last = False
        self._flights.append(_Flight(call, members, group, step))

    # What came back

    def _land(self, flight: _Flight) -> list[GenerationEvent]:
        if flight.group is not None:
            flight.group.aloft = False
        asked_ns = time.perf_counter_ns()
        try:
            self._engine.land(flight.call)
            tokens = flight.call.tokens()
        except StageError as error:
            if not self._report:
                raise
            return self._end_with_error(flight.members, error)
        if not flight.members:
            return []
        ended_ns = flight.call.ended_ns
        elapsed_ns = max(1, ended_ns - max(self._landed_ns, flight.call.sent_ns))
        self._landed_ns = ended_ns
        self._worked_ns += elapsed_ns
        if flight.step is not None:
            return self._decoded(flight, flight.step, tokens, asked_ns, elapsed_ns)
        self._steering.disturbed(flight.call)
        self.prefill_rate.add(flight.tokens, elapsed_ns / 1e9)
        for sequence in flight.ends:
            if sequence.seq_id in self.held:  # no earlier chunk of it has failed
                self._groups.add(sequence)
        self.running_max = max(self.running_max, len(self._groups))
        return self._take(tokens, flight.ends)

    def _decoded(
        self, flight: _Flight, step: Step, tokens: list[int], asked_ns: int, elapsed_ns: int
    ) -> list[GenerationEvent]:
        rows = len(flight.members)
        landing = self._steering.back(
            step, flight.call, self._groups.members, self._worked_ns, asked_ns
        )
        self.decode_rate.add(rows, elapsed_ns / 1e9)
        events = self._take(tokens, flight.members)  # the group's next step waits for this
        self._engine.record(flight.call, rows, step.plan, elapsed_ns, profiled=rows > 1)
        self._steering.landed(landing)
        return events

    def _take(self, tokens: Sequence[int], sequences: Sequence[Running]) -> list[GenerationEvent]:
        alive = [
            (sequence, sequence.next(token))
            for sequence, token in zip(sequences, tokens, strict=True)
            if sequence.seq_id in self.held  # it has not failed since
        ]
        self._let_go([sequence for sequence, token in alive if sequence.draw(token)])
        if not any(sequence.watch.reads_text for sequence, _ in alive):
            self._feed_ahead()  # who goes on is known: off with it, before tokens become text
        events = [sequence.show(token) for sequence, token in alive]
        for (sequence, _), event in zip(alive, events, strict=True):
            if event.finish_reason is not None:
                self.completions.append(sequence.completion(event.finish_reason))
        self._let_go([s for s, _ in alive if s.watch.finish_reason and s.seq_id in self.held])
        return events

    def _end_with_error(
        self, members: Sequence[Running], error: StageError
    ) -> list[GenerationEvent]:
        """End sequences whose step failed; all others go on."""
        gone = [member for member in members if member.seq_id in self.held]
        for sequence in gone:
            self.completions.append(sequence.completion("error", str(error)))
        self._entering = deque(one for one in self._entering if one not in gone)
        self._let_go(gone)
        return [GenerationEvent(one.prompt.index, None, "", "error") for one in gone]

    def _let_go(self, gone: Sequence[Running]) -> None:
        """Release sequences, after whatever is under way for them."""
        if not gone:
            return
        for sequence in gone:
            self._groups.remove(sequence)
        ids = [sequence.seq_id for sequence in gone]
        call = self._engine.let_go(ids)
        for seq_id in ids:  # only now, as an interrupt may have come before
            self.held.remove(seq_id)
        self._full = False
        self._flights.append(_Flight(call))
