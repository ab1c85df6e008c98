"""Continuous batching: who runs, who waits, and when a waiting prompt is let in.

Room for a whole completion is reserved when a prompt is let in, so a running sequence never has to
make way. Prompts are let in in their order, as soon as a finished sequence leaves room.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kernels.errors import CapacityError, InvalidInputError
from model.stage import DecodeRow
from model.stopping import FinishReason, StopWatch
from pipeline.choosing import Chooser
from pipeline.engine import PipelineEngine
from pipeline.prompts import Prompt


@dataclass(frozen=True)
class GenerationEvent:
    """A new token of a prompt's completion, and the text that became final with it."""

    index: int
    token: int
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Completion:
    """A finished completion: its text, and its tokens with the stop token, if one ended it."""

    prompt: str | list[int]
    text: str
    tokens: list[int]
    finish_reason: FinishReason
    index: int


@dataclass
class Running:
    """A sequence that has been let in."""

    seq_id: str
    prompt: Prompt
    watch: StopWatch
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def stream(self) -> int:
        """Stream of its random draws."""
        return self.prompt.index

    @property
    def prompt_tokens(self) -> list[int]:
        """Tokens that were given."""
        return self.prompt.tokens

    def row(self) -> DecodeRow:
        """Its row of the next decode batch: the last token, at the position it takes."""
        return DecodeRow(
            self.seq_id, self.tokens[-1], len(self.prompt.tokens) + len(self.tokens) - 1
        )

    def push(self, token: int) -> GenerationEvent:
        """Take the next token."""
        self.tokens.append(token)
        text = self.watch.push(token)
        self.texts.append(text)
        return GenerationEvent(self.prompt.index, token, text, self.watch.finish_reason)

    def completion(self, reason: FinishReason) -> Completion:
        """What came out."""
        return Completion(
            self.prompt.given, "".join(self.texts), self.tokens, reason, self.prompt.index
        )


@dataclass
class Rate:
    """Tokens and the seconds they took."""

    tokens: int = 0
    seconds: float = 0.0

    def add(self, tokens: int, since: float) -> None:
        """Count `tokens` that took from `since` on the `time.perf_counter` clock until now."""
        self.tokens += tokens
        self.seconds += time.perf_counter() - since

    def json(self) -> dict[str, float | int | None]:
        """Tokens, seconds and their ratio."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens / self.seconds if self.seconds else None,
        }


class Scheduler:
    """Runs prompts to their ends, at most `max_batch` at once.

    Args:
        engine: of the pipeline.
        prompts: all of them fit on their own.
        chooser: of tokens.
        max_new_tokens: of each prompt.
        max_batch: sequences at once.
        watch: makes the watch of a new sequence.
        own_id: makes the id of a new sequence.
    """

    def __init__(
        self,
        engine: PipelineEngine,
        prompts: Sequence[Prompt],
        chooser: Chooser,
        *,
        max_new_tokens: int,
        max_batch: int,
        watch: Callable[[], StopWatch],
        own_id: Callable[[], str],
    ) -> None:
        self._engine = engine
        self._chooser = chooser
        self._max_new_tokens = max_new_tokens
        self._max_batch = max_batch
        self._watch = watch
        self._own_id = own_id
        self._waiting = deque(prompts)
        self._running: list[Running] = []
        self._full = False  # no room when last asked, and nobody left since
        self.held: list[str] = []  # ids of sequences that take room
        self.completions: list[Completion] = []
        self.prefill_rate, self.decode_rate = Rate(), Rate()
        self.running_max = 0

    @property
    def done(self) -> bool:
        """Whether every prompt has come to its end."""
        return not self._waiting and not self._running

    def step(self) -> list[GenerationEvent]:
        """Let the next prompt in, if there is room, or else decode a token of each running one."""
        if self._waiting and len(self._running) < self._max_batch and not self._full:
            admitted = self._admit()
            if admitted is not None:
                return [admitted]
        return self._decode()

    def _admit(self) -> GenerationEvent | None:
        prompt = self._waiting[0]
        seq_id = self._own_id()
        self.held.append(seq_id)
        try:
            self._engine.prepare(seq_id, prompt.positions(self._max_new_tokens))
        except CapacityError as error:
            self.held.remove(seq_id)
            if not self._running:
                raise CapacityError(
                    f"prompt {prompt.index} does not fit beside the sequences that the pipeline "
                    f"holds already: {error}"
                ) from error
            self._full = True
            return None
        self._waiting.popleft()
        start = time.perf_counter()
        output = self._engine.prefill(seq_id, prompt.tokens, self._chooser.answer)
        running = Running(seq_id, prompt, self._watch())
        [token] = self._chooser.choose(output, [running])
        self.prefill_rate.add(len(prompt.tokens), start)
        self._running.append(running)
        self.running_max = max(self.running_max, len(self._running))
        return self._take([token], [running])[0]

    def _decode(self) -> list[GenerationEvent]:
        start = time.perf_counter()
        running = list(self._running)
        rows = [sequence.row() for sequence in running]
        try:
            output = self._engine.decode(rows, self._chooser.answer, single=len(rows) == 1)
        except InvalidInputError:
            if {row.id for row in rows} <= {*self._engine.sequence_ids()}:
                raise
            raise InvalidInputError("the pipeline was reset during generate") from None
        tokens = self._chooser.choose(output, running)
        self.decode_rate.add(len(tokens), start)
        return self._take(tokens, running)

    def _take(self, tokens: Sequence[int], running: Sequence[Running]) -> list[GenerationEvent]:
        events = []
        for sequence, token in zip(running, tokens, strict=True):
            event = sequence.push(token)
            events.append(event)
            if event.finish_reason is not None:
                self.completions.append(sequence.completion(event.finish_reason))
                self._running.remove(sequence)
                self._engine.release(sequence.seq_id)
                self.held.remove(sequence.seq_id)
                self._full = False
        return events
