"""Checks at the pipeline's border, all of them before anything is written."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kernels.errors import InvalidInputError
from model.stage import DecodeRow

RESERVED = "\0"
"""First character of the ids of the pipeline's own sequences, so that no user's id can collide."""


def check_id(seq_id: object) -> str:
    """The id of a user's sequence: a string that does not begin with the reserved character."""
    if not isinstance(seq_id, str):
        raise InvalidInputError(f"sequence id is {seq_id!r}; expected a string")
    if seq_id.startswith(RESERVED):
        raise InvalidInputError(
            f"sequence id {seq_id!r} begins with {RESERVED!r}, which marks the pipeline's own"
        )
    return seq_id


def as_int(value: Any, what: str) -> int:
    """`value` as an int; numpy and torch integers will do, floats and booleans will not."""
    if type(value) is int:
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InvalidInputError(f"{what} is {value!r}; expected an integer") from None


def as_tokens(tokens: Iterable[Any], vocab_size: int, whose: str) -> list[int]:
    """Token ids as a list of ints within the vocabulary.

    Args:
        tokens: integers, or a one-dimensional integer tensor or array.
        vocab_size: ids are 0 to vocab_size - 1.
        whose: said in errors, such as "sequence 'a'".
    """
    if isinstance(tokens, str):
        raise InvalidInputError(f"tokens of {whose} are text {tokens!r}; expected token ids")
    raw = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    if not isinstance(raw, list):
        raise InvalidInputError(f"tokens of {whose} are {raw!r}; expected a list of token ids")
    ids = [as_int(token, f"token {place} of {whose}") for place, token in enumerate(raw)]
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        place = next(place for place, token in enumerate(ids) if not 0 <= token < vocab_size)
        raise InvalidInputError(
            f"token id {ids[place]} at place {place} of {whose} is outside the vocabulary of "
            f"{vocab_size}"
        )
    return ids


def as_rows(batch: Iterable[Any], vocab_size: int) -> list[DecodeRow]:
    """A decode batch of (id, token, position), each id once, each token in the vocabulary."""
    rows = [_as_row(number, row, vocab_size) for number, row in enumerate(batch)]
    if len({row.id for row in rows}) != len(rows):
        first: dict[str, int] = {}
        for number, row in enumerate(rows):
            if row.id in first:
                raise InvalidInputError(
                    f"sequence {row.id!r} appears twice in one batch, in rows {first[row.id]} "
                    f"and {number}"
                )
            first[row.id] = number
    return rows


def _as_row(number: int, row: Any, vocab_size: int) -> DecodeRow:
    if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 3:
        raise InvalidInputError(
            f"row {number} of the batch is {row!r}; expected (id, token, position)"
        )
    seq_id, token, pos = row
    if not isinstance(seq_id, str):
        raise InvalidInputError(f"sequence id of row {number} is {seq_id!r}; expected a string")
    token = as_int(token, f"token of row {number} (sequence {seq_id!r})")
    pos = as_int(pos, f"position of row {number} (sequence {seq_id!r})")
    if not 0 <= token < vocab_size:
        raise InvalidInputError(
            f"token id {token} of row {number} (sequence {seq_id!r}) is outside the vocabulary "
            f"of {vocab_size}"
        )
    return DecodeRow(seq_id, token, pos)


def check_positions(rows: Sequence[DecodeRow], lengths: Mapping[str, int]) -> None:
    """Check that every row's position is its sequence's length."""
    for number, row in enumerate(rows):
        length = lengths[row.id]
        if row.pos == length:
            continue
        if length == 0:
            raise InvalidInputError(
                f"sequence {row.id!r} of row {number} holds no tokens, so its position must be 0; "
                f"got {row.pos}"
            )
        raise InvalidInputError(
            f"sequence {row.id!r} of row {number} is {length} long, so its position must be "
            f"{length}; got {row.pos}"
        )
