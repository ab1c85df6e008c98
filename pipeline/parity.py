"""Whether a split model equals the whole one: the same prompts through both, bit by bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch

from kernels.errors import InvalidInputError
from model.stage import DecodeRow
from pipeline.candidates import Arrangement
from pipeline.job import Call
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.modes import LlamaPipelineMode
from pipeline.schedule import plan_decode
from pipeline.work import Answer, Decode

TOLERANCE = 1e-5
"""What a difference in matrix shapes may cost with float32 weights."""


@dataclass(frozen=True)
class ParityReport:
    """Logits of a split model against those of the whole.

    Attributes:
        max_abs_diff: over all rows; the whole model takes the same microbatches.
        bitwise_equal: whether every logit is the same.
        rows: rows of logits compared, of prefill and decode.
        whole_batch_max_abs_diff: the same for a whole model that takes each decode batch in one
            piece; differs from `max_abs_diff` only where the split one cuts it.
        ok: bitwise equal; and, with float32 weights and cache, within 1e-5 of the uncut batch.
    """

    max_abs_diff: float
    bitwise_equal: bool
    rows: int
    stages: int
    mode: str
    kv_dtype: str
    steps: int
    whole_batch_max_abs_diff: float
    ok: bool

    def json(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def parity(
    path: str | PathLike[str] | None = None,
    prompts: Sequence[str | Sequence[int]] | None = None,
    *,
    steps: int = 8,
    **options: Any,
) -> ParityReport:
    """Load a checkpoint split and whole, and compare; see `compare`.

    Args:
        path: the checkpoint's folder; None is the bundled model.
        prompts: texts or token ids; by default some of token ids, enough for the stages to
            overlap.
        steps: decode steps after the prefill.
        options: of the split pipeline, see `LlamaPipeline.from_pretrained`. The whole model gets
            the same, but for the split, and the first stage's threads.
    """
    apart = ("stages", "splits", "devices", "mode", "threads", "progress")
    shared = {name: value for name, value in options.items() if name not in apart}
    with LlamaPipeline.from_pretrained(path, **options) as split:
        threads = compared_threads(split)
        with LlamaPipeline.from_pretrained(path, stages=1, threads=threads, **shared) as whole:
            return compare(split, whole, prompts, steps=steps)


def compare(
    split: LlamaPipeline,
    whole: LlamaPipeline,
    prompts: Sequence[str | Sequence[int]] | None = None,
    *,
    steps: int = 8,
) -> ParityReport:
    """Prefill the prompts and decode `steps` greedy tokens through both; compare all logits.

    `whole` must have one stage; its most likely tokens are what both decode. Sequences that the
    two hold already are left alone, those made here are released.

    Raises `InvalidInputError` for prompts that cannot be used or a `whole` that is not whole.
    """
    if len(whole.stages) != 1:
        raise InvalidInputError(f"whole has {len(whole.stages)} stages; expected 1")
    tokens = _prompt_tokens(split, prompts, steps)
    size = microbatch_size(split, len(tokens))
    same, uncut = _Difference(), _Difference()
    ours, theirs = _Run(split, tokens), _Run(whole, tokens)
    try:
        expected, drawn = [theirs.prefill()], []
        whole_batches = [expected[0]]
        for _ in range(steps):
            drawn.append(expected[-1].argmax(dim=1).tolist())
            if size < len(tokens):
                whole_batches.append(theirs.step(drawn[-1], len(tokens)))
                theirs.step_back()
            expected.append(theirs.step(drawn[-1], size))
            if size == len(tokens):
                whole_batches.append(expected[-1])
        got = [ours.prefill()]
        if flows(split):
            got += ours.flow(drawn, size)
        else:
            got += [ours.step(step, len(tokens)) for step in drawn]
    finally:
        ours.release()
        theirs.release()
    for mine, part, batch in zip(got, expected, whole_batches, strict=True):
        same.add(mine, part)
        uncut.add(mine, batch)
    return ParityReport(
        max_abs_diff=same.max_abs,
        bitwise_equal=same.bitwise_equal,
        rows=same.rows,
        stages=len(split.stages),
        mode=split.placement.mode.value,
        kv_dtype=split.stages[0].layout.dtype,
        steps=steps,
        whole_batch_max_abs_diff=uncut.max_abs,
        ok=same.bitwise_equal and (not _all_float32(split) or uncut.max_abs <= TOLERANCE),
    )


def _all_float32(pipeline: LlamaPipeline) -> bool:
    stage = pipeline.stages[0]
    return stage.layout.dtype == "fp32" and stage.dtype == torch.float32


def compared_threads(split: LlamaPipeline) -> int:
    """Intra-op threads that the whole model needs to be compared with `split`."""
    if not flows(split):
        return split.threads[0]
    split.engine.arrange(Arrangement.TOGETHER)
    threads = split.threads[0]
    if split.placement.mode is LlamaPipelineMode.AUTO:
        split.engine.arrange(Arrangement.TURNS)
    return threads


def flows(pipeline: LlamaPipeline) -> bool:
    """Whether groups of a pipeline's sequences are in flight across steps, or may be."""
    in_flight = (LlamaPipelineMode.CONTINUOUS, LlamaPipelineMode.AUTO)
    return pipeline.placement.mode in in_flight and len(pipeline.stages) > 1


def microbatch_size(pipeline: LlamaPipeline, rows: int) -> int:
    """Rows that go through a pipeline's stages at once, of a decode step of `rows`."""
    stages = len(pipeline.stages)
    if flows(pipeline):
        return -(-rows // min(rows, pipeline.groups or stages))
    return plan_decode(pipeline.placement.mode, stages, rows).microbatch_size


class _Difference:
    """The worst difference between logits seen so far; NaN stays."""

    def __init__(self) -> None:
        self.max_abs = 0.0
        self.bitwise_equal = True
        self.rows = 0

    def add(self, got: torch.Tensor, expected: torch.Tensor) -> None:
        """Compare [B, V] with [B, V]."""
        worst = (got.double() - expected.double()).abs().max()
        self.max_abs = float(torch.maximum(torch.tensor(self.max_abs, dtype=worst.dtype), worst))
        self.bitwise_equal &= torch.equal(got, expected)
        self.rows += len(got)


class _Run:
    """The prompts' sequences in one pipeline."""

    def __init__(self, pipeline: LlamaPipeline, tokens: list[list[int]]) -> None:
        self._pipeline = pipeline
        self._tokens = tokens
        self._ids = [f"parity-{id(self)}-{row}" for row in range(len(tokens))]
        self._lengths = [len(prompt) for prompt in tokens]

    def prefill(self) -> torch.Tensor:
        """Logits [B, V] after the prompts."""
        pairs = zip(self._ids, self._tokens, strict=True)
        return torch.stack([self._pipeline.prefill(seq_id, ids) for seq_id, ids in pairs])

    def step(self, tokens: list[int], size: int) -> torch.Tensor:
        """Logits [B, V] after one more token each, in calls of `size` rows."""
        parts = self._parts(tokens, size)
        return torch.cat([self._pipeline.decode_batch(part, full_logits=True) for part in parts])

    def flow(self, steps: list[list[int]], size: int) -> list[torch.Tensor]:
        """Logits [B, V] of every step, with groups of `size` rows that do not wait for each other.

        A group's next step is sent when its own last one is back, while others are under way.
        """
        engine = self._pipeline.engine
        engine.arrange(Arrangement.TOGETHER)
        aloft: deque[Call] = deque()
        landed: list[torch.Tensor] = []

        def land() -> None:
            call = aloft.popleft()
            engine.land(call)
            landed.append(call.answers())

        for tokens in steps:
            for part in self._parts(tokens, size):
                if len(aloft) == -(-len(tokens) // size):
                    land()
                aloft.append(engine.launch([Decode(part, Answer.LOGITS)]))
        while aloft:
            land()
        if self._pipeline.placement.mode is LlamaPipelineMode.AUTO:
            engine.arrange(Arrangement.TURNS)  # as it was
        groups = len(landed) // len(steps) if steps else 1
        return [torch.cat(landed[i : i + groups]) for i in range(0, len(landed), groups)]

    def _parts(self, tokens: list[int], size: int) -> list[list[DecodeRow]]:
        batch = list(map(DecodeRow, self._ids, tokens, self._lengths))
        self._lengths = [length + 1 for length in self._lengths]
        return [batch[start : start + size] for start in range(0, len(batch), size)]

    def step_back(self) -> None:
        """Forget the last token of each."""
        self._lengths = [length - 1 for length in self._lengths]
        for seq_id, length in zip(self._ids, self._lengths, strict=True):
            self._pipeline.truncate_kv(seq_id, length)

    def release(self) -> None:
        for seq_id in self._ids:
            self._pipeline.release(seq_id)


def _prompt_tokens(
    pipeline: LlamaPipeline, prompts: Sequence[str | Sequence[int]] | None, steps: int
) -> list[list[int]]:
    if steps < 0:
        raise InvalidInputError(f"steps is {steps}; expected at least 0")
    if prompts is None:
        vocab, longest = pipeline.config.vocab_size, max(1, pipeline.kv_capacity() - steps)
        return [
            [(7 * row + 3 * place) % vocab for place in range(min(longest, 1 + row % 13))]
            for row in range(24)
        ]
    if not prompts:
        raise InvalidInputError("no prompts; expected at least one")
    tokenizer = pipeline.tokenizer
    tokens = []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            if tokenizer is None:
                raise InvalidInputError(f"prompt {number} is text, and there is no tokenizer.json")
            prompt = tokenizer.encode(prompt)
        tokens.append(list(prompt))
    return tokens
