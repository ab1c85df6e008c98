"""The next token of every running sequence: the stage's own greedy answer, or sampled there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from model.sampling import SamplingParams
from pipeline.work import Answer, Asked, Sample


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


def next_tokens(params: SamplingParams, sequences: Sequence[Drawing]) -> Asked:
    """What to ask the last stage for, to get a token for each sequence as `params` say.

    Greedy choice needs no logits.
    """
    if params.is_greedy:
        return Answer.GREEDY
    history = None
    if params.repetition_penalty != 1:
        history = [[*sequence.prompt_tokens, *sequence.tokens] for sequence in sequences]
    return Sample(
        params,
        [sequence.stream for sequence in sequences],
        [len(sequence.tokens) for sequence in sequences],
        history,
    )
