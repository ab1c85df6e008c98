"""Text from prompts: the stream of events that `LlamaPipeline.generate` and `.stream` give."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kernels.errors import InvalidInputError
from model.sampling import SamplingParams
from model.stopping import StopCondition, StopWatch
from model.tokenizer import Tokenizer
from pipeline.engine import PipelineEngine
from pipeline.prompts import Prompt, PromptLike, check_fit, read_prompts
from pipeline.scheduler import Limits, Scheduler
from pipeline.sequences import Completion, GenerationEvent, Running
from pipeline.steering import Steering
from pipeline.validation import as_int, as_tokens

DEFAULT_MAX_BATCH = 32
DEFAULT_PREFILL_CHUNK = 256
"""Tokens. Fixed, as a prompt's last bits depend on where its chunks begin."""


@dataclass(frozen=True)
class GenerationResult:
    """Completions in the order of their prompts.

    `metrics` has "prefill" and "decode", each with tokens, seconds and tokens_per_s (the first
    token of a completion belongs to its prefill); "running_max", the most sequences that ran at
    once; and "snapshot", the pipeline's own metrics.
    """

    completions: list[Completion]
    metrics: dict[str, Any]

    def json(self) -> dict[str, Any]:
        """Completions and metrics, ready for JSON."""
        return {
            "completions": [asdict(completion) for completion in self.completions],
            "metrics": self.metrics,
        }


class GenerationStream(Iterator[GenerationEvent]):
    """Events of all prompts as their tokens come; also a context manager.

    Its sequences are released as they finish, and all of them when it ends, fails or is closed.
    See `LlamaPipeline.generate` for the arguments and what they raise.
    """

    _scheduler: Scheduler | None = None  # so that `__del__` works where `__init__` raised

    def __init__(
        self,
        engine: PipelineEngine,
        steering: Steering,
        tokenizer: Tokenizer | None,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        max_new_tokens: int,
        sampling: SamplingParams | None,
        stop: str | Sequence[str],
        stop_token_ids: Sequence[int] | None,
        max_batch: int | None,
        prefill_chunk: int | None,
        add_special_tokens: bool,
        on_error: str,
        drawn: Mapping[int, Sequence[int]] | None,
        snapshot: Callable[[], dict[str, Any]],
        own_id: Callable[[str], str],
    ) -> None:
        config = engine.config
        max_new_tokens = _at_least_one("max_new_tokens", max_new_tokens)
        max_batch = _at_least_one(
            "max_batch", DEFAULT_MAX_BATCH if max_batch is None else max_batch
        )
        prefill_chunk = _at_least_one(
            "prefill_chunk", DEFAULT_PREFILL_CHUNK if prefill_chunk is None else prefill_chunk
        )
        if on_error not in ("raise", "report"):
            raise InvalidInputError(f"on_error is {on_error!r}; expected raise or report")
        if stop_token_ids is None:
            stop_token_ids = (tokenizer or config).eos_token_ids
        condition = StopCondition(stop_token_ids, stop)
        if condition.strings and tokenizer is None:
            raise InvalidInputError(
                f"stop is {stop!r}, but the pipeline has no tokenizer; use stop_token_ids"
            )
        read = read_prompts(
            prompts, tokenizer, config.vocab_size, add_special_tokens=add_special_tokens
        )
        check_fit(read, max_new_tokens, engine.kv_capacity())

        def watch() -> StopWatch:
            text = _NoText() if tokenizer is None else tokenizer.stream()
            return condition.watch(text, max_new_tokens)

        self._engine = engine
        self._steering = steering
        self._snapshot = snapshot
        drawn = _checked(drawn or {}, len(read), config.vocab_size)
        ended = [one for prompt in read if (one := _ended(prompt, watch(), drawn)) is not None]
        self._events = deque(event for _, events in ended for event in events)
        gone = {finished.prompt.index for finished, _ in ended}
        self._scheduler = Scheduler(
            engine,
            steering,
            [prompt for prompt in read if prompt.index not in gone],
            sampling or SamplingParams(),
            Limits(max_new_tokens, max_batch, prefill_chunk),
            watch=watch,
            own_id=lambda: own_id("generate"),
            drawn=drawn,
            report=on_error == "report",
        )
        for finished, events in ended:
            reason = events[-1].finish_reason
            assert reason is not None
            self._scheduler.completions.append(finished.completion(reason))
        self._closed = False

    def __next__(self) -> GenerationEvent:
        assert self._scheduler is not None
        while not self._events:
            if self._closed or self._scheduler.done:
                self._steering.end(self)
                raise StopIteration
            self._steering.begin(self)
            try:
                self._events.extend(self._scheduler.step())
            except BaseException:
                self.close()
                raise
        return self._events.popleft()

    def result(self) -> GenerationResult:
        """What has finished so far, in the order of the prompts, and the metrics."""
        assert self._scheduler is not None
        completions = sorted(self._scheduler.completions, key=lambda done: done.index)
        return GenerationResult(completions, self.metrics)

    @property
    def metrics(self) -> dict[str, Any]:
        """See `GenerationResult`."""
        assert self._scheduler is not None
        return {
            "prefill": self._scheduler.prefill_rate.json(),
            "decode": self._scheduler.decode_rate.json(),
            "running_max": self._scheduler.running_max,
            "snapshot": self._snapshot(),
        }

    def close(self) -> None:
        """Release what still runs; further iteration ends. Again is fine."""
        self._closed = True
        self._events.clear()
        self._give_up()
        self._engine.tidy()
        self._steering.end(self)

    def _give_up(self) -> None:
        if self._scheduler is not None:
            self._engine.abandon(self._scheduler.stop())
            self._scheduler.held.clear()  # only now: twice is harmless, never is not

    def __del__(self) -> None:
        # May run in any thread, in the middle of anything: the next call releases.
        self._give_up()

    def __enter__(self) -> GenerationStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_to_end(stream: GenerationStream) -> GenerationResult:
    """Take all events of a stream and return its result."""
    with stream:
        for _ in stream:
            pass
        return stream.result()


class _NoText:
    """Stands in for a tokenizer's stream where there is none."""

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def _ended(
    prompt: Prompt, watch: StopWatch, drawn: Mapping[int, Sequence[int]]
) -> tuple[Running, list[GenerationEvent]] | None:
    """A sequence that an earlier run brought to its end, and its events; None for any other."""
    sequence = Running("", prompt, watch)
    events = sequence.replay(drawn.get(prompt.index, ()))
    return (sequence, events) if events and events[-1].finish_reason else None


def _checked(
    drawn: Mapping[int, Sequence[int]], prompts: int, vocab_size: int
) -> dict[int, list[int]]:
    """Tokens by prompt. Raises `InvalidInputError` for a prompt or a token that is not there."""
    for index in drawn:
        if not 0 <= as_int(index, "a prompt in drawn") < prompts:
            raise InvalidInputError(f"drawn has prompt {index}; expected 0 to {prompts - 1}")
    return {
        index: as_tokens(tokens, vocab_size, f"prompt {index} in drawn")
        for index, tokens in drawn.items()
    }


def _at_least_one(name: str, value: Any) -> int:
    number = as_int(value, name)
    if number < 1:
        raise InvalidInputError(f"{name} is {number}; expected at least 1")
    return number
