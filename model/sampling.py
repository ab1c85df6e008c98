"""Choosing the next token: greedy, or drawn so that the same seed always gives the same text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.errors import InvalidInputError
from model.config_values import is_int, is_number
from model.counter_random import uniform
from model.logits_filters import filter_logits, repetition_penalty


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens; the names and meanings are those of transformers.

    Attributes:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the fewest likeliest tokens whose probabilities reach this; 1 keeps all.
        min_p: keep tokens at least this times as likely as the likeliest; 0 keeps all.
        repetition_penalty: above 1 makes tokens of the prompt and the text so far less likely.
        seed: with a sequence's stream and step, decides every draw; 0 to 2^64 - 1.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, in_range, expected in (
            ("temperature", lambda value: value >= 0, "from 0"),
            ("top_p", lambda value: 0 < value <= 1, "above 0 and at most 1"),
            ("min_p", lambda value: 0 <= value <= 1, "from 0 to 1"),
            ("repetition_penalty", lambda value: value > 0, "above 0"),
        ):
            value = getattr(self, name)
            if not is_number(value) or not in_range(value) or not math.isfinite(value):
                raise InvalidInputError(f"{name} is {value!r}, expected a number {expected}")
        if not is_int(self.top_k) or self.top_k < 0:
            raise InvalidInputError(f"top_k is {self.top_k!r}, expected an integer from 0 (off)")
        if not is_int(self.seed) or not 0 <= self.seed < 1 << 64:
            raise InvalidInputError(f"seed is {self.seed!r}, expected an integer in [0, 2^64)")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken and the logits are not changed before."""
        return self.temperature == 0 and self.repetition_penalty == 1


def sample(
    logits: torch.Tensor,
    params: SamplingParams,
    streams: torch.Tensor,
    steps: torch.Tensor,
    history: Sequence[Sequence[int]] | None = None,
) -> torch.Tensor:
    """Choose a token for each row.

    A row's token depends on its logits, its history and (seed, stream, step) only: not on the
    other rows, nor on what was drawn before.

    Args:
        logits: [B, V] float32; tokens that must not come may be -inf.
        params: how to choose.
        streams: int64 [B], which sequence each row is.
        steps: int64 [B], how many tokens the sequence has drawn before.
        history: tokens of each row so far, prompt included; only a repetition penalty reads it.

    Returns:
        int64 [B]; the lowest id where greedy choice ties.

    Raises:
        InvalidInputError: a row's logits have NaN, +inf or nothing finite; shapes disagree.
    """
    _check(logits, streams, steps)
    if params.temperature == 0:
        return repetition_penalty(logits, history, params.repetition_penalty).argmax(-1)
    scores = filter_logits(logits, params, history)
    # summed one after the other in float64: a row's sums do not depend on how rows are cut up
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)  # [B, V]
    total = cumulative[:, -1:]
    drawn = uniform(params.seed, streams.to(logits.device), steps.to(logits.device))[:, None]
    # below the total even where the product rounds up to it
    target = torch.minimum(drawn * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def _check(logits: torch.Tensor, streams: torch.Tensor, steps: torch.Tensor) -> None:
    if logits.ndim != 2 or logits.dtype != torch.float32 or not logits.shape[-1]:
        raise InvalidInputError(
            f"logits are {list(logits.shape)} {logits.dtype}, expected [B, V] torch.float32"
        )
    for name, value in (("streams", streams), ("steps", steps)):
        if value.shape != logits.shape[:1] or value.dtype != torch.int64:
            raise InvalidInputError(
                f"{name} are {list(value.shape)} {value.dtype}, expected "
                f"[{logits.shape[0]}] torch.int64"
            )
    highest = logits.amax(-1)  # NaN where a row has one
    bad = ~highest.isfinite()
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise InvalidInputError(
            f"logits of row {row} have the maximum {float(highest[row])}, expected a finite one"
        )
