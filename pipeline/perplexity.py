"""Perplexity of a text under a model: how well it predicts every token from those before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kernels.errors import InvalidInputError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.validation import as_int, as_tokens


@dataclass(frozen=True)
class PerplexityResult:
    """Mean negative log likelihood in nats, its exponential, and over how many tokens."""

    perplexity: float
    nll_per_token: float
    tokens: int

    def json(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def perplexity(
    pipeline: LlamaPipeline,
    text: str | Sequence[int],
    window: int | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Perplexity of a text or a list of token ids, in windows that do not overlap.

    Every window feeds at most `window` tokens and starts with the tokenizer's bos, if it has
    one; then every token of the text is predicted once. Without bos a window starts with the last
    token of the window before, and the first token of the text is not predicted.

    Args:
        pipeline: the model; it keeps no sequence.
        text: at least one token beside a leading bos, or two without.
        window: by default 512, or what a sequence may hold if that is less.
        progress: told after each window how many tokens were predicted, and of how many.

    Raises:
        InvalidInputError: nothing to predict, or a window that cannot be had.
    """
    tokens, bos = _tokens(pipeline, text)
    capacity = pipeline.kv_capacity()
    window = min(512, capacity) if window is None else as_int(window, "window")
    if not 1 <= window <= capacity:
        raise InvalidInputError(f"window is {window}; expected 1 to {capacity}, the KV capacity")
    nll, count = 0.0, 0
    for fed, predicted in windows(tokens, bos, window):
        logits = pipeline.score(fed)  # [T, V]
        targets = torch.tensor(predicted, device=logits.device)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        nll += float(losses.sum(dtype=torch.float64))
        count += len(predicted)
        if progress is not None:
            progress(count, len(tokens) - (bos is None))
    if count == 0:
        raise InvalidInputError(
            f"text has {len(tokens)} tokens, so there is nothing to predict; "
            f"expected at least {1 if bos is not None else 2}"
        )
    return PerplexityResult(math.exp(nll / count), nll / count, count)


def windows(
    tokens: Sequence[int], bos: int | None, window: int
) -> Iterator[tuple[list[int], list[int]]]:
    """(tokens fed, tokens predicted) of each window, of equal length."""
    context = list(tokens) if bos is None else [bos, *tokens]
    # Position i of `context` predicts i + 1, whichever window feeds it.
    for start in range(0, len(context) - 1, window):
        predicted = context[start + 1 : start + 1 + window]
        fed = context[start : start + len(predicted)]
        yield (fed if bos is None else [bos, *fed[1:]]), predicted


def _tokens(pipeline: LlamaPipeline, text: str | Sequence[int]) -> tuple[list[int], int | None]:
    tokenizer = pipeline.tokenizer
    bos = tokenizer.bos_token_id if tokenizer is not None else None
    if not isinstance(text, str):
        tokens = as_tokens(text, pipeline.config.vocab_size, "the text")
        return tokens[1:] if tokens and tokens[0] == bos else tokens, bos
    if tokenizer is None:
        raise InvalidInputError("text needs a tokenizer, and the checkpoint has no tokenizer.json")
    return tokenizer.encode(text, add_special_tokens=False), bos
