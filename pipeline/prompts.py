"""Prompts as `generate` takes them, turned into token ids and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kernels.errors import CapacityError, InvalidInputError
from model.tokenizer import Tokenizer
from pipeline.validation import as_tokens

PromptLike = str | Sequence[int]


@dataclass(frozen=True)
class Prompt:
    """One prompt: as given, and as token ids."""

    index: int
    given: str | list[int]
    tokens: list[int]

    def positions(self, max_new_tokens: int) -> int:
        """Positions that the prompt and its completion take; the last token is never fed back."""
        return len(self.tokens) + max_new_tokens - 1


def read_prompts(
    prompts: PromptLike | Sequence[PromptLike],
    tokenizer: Tokenizer | None,
    vocab_size: int,
    *,
    add_special_tokens: bool = True,
) -> list[Prompt]:
    """One prompt or several, each a text or a list of token ids.

    Raises `InvalidInputError` that names the prompt: empty, not text nor token ids, ids outside
    the vocabulary, or text without a tokenizer.
    """
    return [
        _read(index, prompt, tokenizer, vocab_size, add_special_tokens)
        for index, prompt in enumerate(_several(prompts))
    ]


def check_fit(prompts: Sequence[Prompt], max_new_tokens: int, capacity: int) -> None:
    """Raise `CapacityError` that names a prompt which can never fit `capacity` positions."""
    for prompt in prompts:
        needed = prompt.positions(max_new_tokens)
        if needed > capacity:
            raise CapacityError(
                f"prompt {prompt.index} has {len(prompt.tokens)} tokens and asks for "
                f"{max_new_tokens} more, which takes {needed} positions; a sequence holds at "
                f"most {capacity}"
            )


def _several(prompts: PromptLike | Sequence[PromptLike]) -> list[PromptLike]:
    if isinstance(prompts, str):
        return [prompts]
    several: list[Any] = prompts.tolist() if hasattr(prompts, "tolist") else list(prompts)
    if not several:
        raise InvalidInputError("no prompts; expected at least one")
    if all(hasattr(item, "__index__") and not hasattr(item, "__len__") for item in several):
        return [several]
    return several


def _read(
    index: int,
    prompt: PromptLike,
    tokenizer: Tokenizer | None,
    vocab_size: int,
    add_special_tokens: bool,
) -> Prompt:
    if isinstance(prompt, str):
        if tokenizer is None:
            raise InvalidInputError(
                f"prompt {index} is text, but the pipeline has no tokenizer; expected token ids"
            )
        tokens = tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        given: str | list[int] = prompt
    else:
        if not hasattr(prompt, "__iter__"):
            raise InvalidInputError(f"prompt {index} is {prompt!r}; expected text or token ids")
        given = tokens = as_tokens(prompt, vocab_size, f"prompt {index}")
    if not tokens:
        raise InvalidInputError(f"prompt {index} is empty; expected at least one token")
    return Prompt(index, given, as_tokens(tokens, vocab_size, f"prompt {index}"))
