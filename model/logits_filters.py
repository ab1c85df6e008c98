"""What is done to logits before a token is drawn: penalty, temperature, top-k, top-p and min-p.

Each takes and returns [B, V] float32 and treats a row without regard to the others, bit for bit.
The order and the meaning are those of transformers' logits processors, with one difference:
tokens that tie with the last one kept by top-p are kept too, so that no sort order matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from kernels.errors import InvalidInputError
from model.sampling_params import SamplingParams

_FLOAT32 = torch.finfo(torch.float32)

# How many of the likeliest tokens top-p sorts: real models' distributions are settled by the
# first, and to sort a whole large vocabulary takes longer than all the rest.
_NUCLEUS = (1024, 8192, 1 << 62)


def filter_logits(
    logits: torch.Tensor, params: SamplingParams, history: Sequence[Sequence[int]] | None
) -> torch.Tensor:
    """All that `params` asks for, but drawing: [B, V] float32, maximum 0, dropped tokens -inf.

    Args:
        logits: [B, V] float32; each row has a finite maximum.
        params: with a temperature above 0.
        history: the tokens so far of each row, prompt included, for the repetition penalty.
    """
    scores = repetition_penalty(logits, history, params.repetition_penalty)
    # from the maximum down, so that no temperature that float32 can hold overflows
    temperature = min(max(params.temperature, _FLOAT32.tiny), _FLOAT32.max)
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    if 0 < params.top_k < scores.shape[-1]:
        scores = keep_top_k(scores, params.top_k)
    if params.top_p < 1:
        scores = keep_top_p(scores, params.top_p)
    if params.min_p > 0:
        scores = keep_min_p(scores, params.min_p)
    return scores


def repetition_penalty(
    logits: torch.Tensor, history: Sequence[Sequence[int]] | None, penalty: float
) -> torch.Tensor:
    """Divide positive and multiply negative logits of tokens that a row has had by `penalty`."""
    if penalty == 1:
        return logits
    rows, vocab = logits.shape
    if history is None or len(history) != rows:
        got = "none" if history is None else f"one of {len(history)} rows"
        raise InvalidInputError(f"a repetition penalty needs a history of {rows} rows, got {got}")
    flat = [np.asarray(tokens, dtype=np.int64) for tokens in history]
    for row, tokens in enumerate(flat):
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab:
            raise InvalidInputError(
                f"history of row {row} has a token outside the vocabulary of {vocab}"
            )
    where = np.concatenate([tokens + row * vocab for row, tokens in enumerate(flat)])
    index = torch.from_numpy(where).to(logits.device)
    result = logits.flatten().clone()
    seen = result[index]
    result[index] = torch.where(seen < 0, seen * penalty, seen / penalty)
    return result.view(rows, vocab)


def keep_top_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k highest scores of each row, and those equal to the last of them."""
    last = scores.topk(k, dim=-1).values[:, -1:]
    return _drop(scores, scores < last)


def keep_top_p(scores: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the fewest of the likeliest tokens whose probabilities reach p, at least one."""
    probabilities = scores.softmax(-1)
    rows = torch.arange(len(scores), device=scores.device)
    kept = probabilities.new_empty(len(scores), 1)
    for count in _NUCLEUS:
        last, enough = _nucleus(probabilities[rows], count, p)
        kept[rows] = last
        rows = rows[~enough]
        if not len(rows):
            break
    return _drop(scores, probabilities < kept)


def _nucleus(
    probabilities: torch.Tensor, count: int, p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest probability kept, [B, 1], and whether the `count` likeliest tell it, [B]."""
    vocab = probabilities.shape[-1]
    ordered = probabilities.topk(min(count, vocab), dim=-1).values  # [B, count], descending
    above = ordered.cumsum(-1, dtype=torch.float64) - ordered  # what lies above each token
    keep = above < p
    last = ordered.gather(-1, keep.sum(-1, keepdim=True) - 1)
    return last, ~keep[:, -1] | (count >= vocab)


def keep_min_p(scores: torch.Tensor, min_p: float) -> torch.Tensor:
    """Keep tokens at least `min_p` times as likely as the likeliest."""
    return _drop(scores, scores < scores.amax(-1, keepdim=True) + math.log(min_p))


def _drop(scores: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return torch.where(where, -math.inf, scores)
