"""Choosing the next token: greedy, or drawn so that the same seed always gives the same text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.errors import InvalidInputError
from model.counter_random import uniform
from model.logits_filters import filter_logits, repetition_penalty
from model.sampling_params import SamplingParams

__all__ = ["SamplingParams", "sample"]


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
