"""The next token of every running sequence: the stage's own greedy answer, or sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from model.sampling import SamplingParams, sample
from pipeline.work import Answer


class Drawing(Protocol):
    """A sequence that draws tokens."""

    @property
    def stream(self) -> int:
        """Which sequence this is; decides its draws together with their number."""

    @property
    def prompt_tokens(self) -> list[int]:
        """Tokens that were given."""

    @property
    def tokens(self) -> list[int]:
        """Tokens drawn so far."""


class Chooser:
    """Turns the pipeline's answers into tokens as `params` say."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params

    @property
    def answer(self) -> Answer:
        """What to ask the last stage for; greedy choice needs no logits here."""
        return Answer.GREEDY if self._params.is_greedy else Answer.LOGITS

    def choose(self, output: torch.Tensor, sequences: Sequence[Drawing]) -> list[int]:
        """One token per sequence from the answer's rows."""
        if self._params.is_greedy:
            tokens: list[int] = output.tolist()
            return tokens
        streams = torch.tensor([sequence.stream for sequence in sequences])
        steps = torch.tensor([len(sequence.tokens) for sequence in sequences])
        history = None
        if self._params.repetition_penalty != 1:
            history = [[*sequence.prompt_tokens, *sequence.tokens] for sequence in sequences]
        tokens = sample(output, self._params, streams, steps, history).tolist()
        return tokens
