"""What a job asks of the stages: tokens to append, and what the last stage makes of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

import torch

from kernels.errors import InvalidInputError
from model.sampling import SamplingParams, sample
from model.stage import DecodeRow
from pipeline.interfaces import Stage


class Asked(Protocol):
    """What the last stage is asked to make of a hidden state [N, H]."""

    @property
    def value(self) -> str:
        """Its name in errors and traces."""

    def of(self, stage: Stage, hidden: torch.Tensor) -> torch.Tensor:
        """Ask `stage` for it."""


class Answer(Enum):
    """Answers that need nothing but the hidden state."""

    LOGITS = "logits"  # float32 [N, V]
    GREEDY = "greedy"  # int64 [N], ties to the lowest id

    def of(self, stage: Stage, hidden: torch.Tensor) -> torch.Tensor:
        """Ask `stage` for it."""
        return stage.logits(hidden) if self is Answer.LOGITS else stage.greedy(hidden)


@dataclass(frozen=True)
class Sample:
    """Tokens drawn where the logits are, int64 [N], so that only token ids travel.

    See `model.sampling.sample` for the fields; one entry per row.
    """

    params: SamplingParams
    streams: Sequence[int]
    steps: Sequence[int]
    history: Sequence[Sequence[int]] | None = None

    value = "logits"

    def of(self, stage: Stage, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the hidden state's rows, and a token drawn from each."""
        streams, steps = torch.tensor(self.streams), torch.tensor(self.steps)
        return sample(stage.logits(hidden), self.params, streams, steps, self.history)


class Piece(NamedTuple):
    """Tokens that a prefill appends to one sequence, from position `pos` on."""

    id: str
    tokens: Sequence[int]
    pos: int
    ends: bool = True  # whether its last token wants an answer


@dataclass(frozen=True)
class Prefill:
    """Tokens appended to one sequence or several.

    Answers are for the last token of each piece that `ends`, in order; with `all_rows`, for every
    token.
    """

    pieces: Sequence[Piece]
    answer: Asked
    all_rows: bool = False

    name = "prefill"

    @property
    def appends(self) -> list[tuple[str, int]]:
        """(sequence, new tokens)."""
        return [(piece.id, len(piece.tokens)) for piece in self.pieces]

    @property
    def row_count(self) -> int:
        """Rows of its hidden state."""
        return sum(len(piece.tokens) for piece in self.pieces)

    def operation(self, first: bool) -> str:
        """Name of the stage's operation."""
        what = "prefill" if len(self.pieces) == 1 else "append"
        return f"{what}_tokens" if first else f"{what}_hidden"

    def run(self, stage: Stage, hidden: torch.Tensor | None) -> torch.Tensor:
        """Hidden state [T, H] after `stage`; `hidden` is that before it, None for the first."""
        for piece in self.pieces:
            # Of several chunks under way the first may have failed, and this one must not follow.
            if (length := stage.cache_len(piece.id)) != piece.pos:
                raise InvalidInputError(
                    f"sequence {piece.id!r} is at length {length}, got tokens for position "
                    f"{piece.pos}"
                )
        if len(self.pieces) == 1:
            piece = self.pieces[0]
            if hidden is None:
                return stage.prefill_tokens(piece.id, piece.tokens)
            return stage.prefill_hidden(piece.id, hidden)
        if hidden is None:
            return stage.append_tokens([(piece.id, piece.tokens) for piece in self.pieces])
        return stage.append_hidden(self.appends, hidden)

    def answered(self, hidden: torch.Tensor) -> torch.Tensor:
        """The rows that want an answer."""
        if self.all_rows:
            return hidden
        if len(self.pieces) == 1:
            return hidden[-1:] if self.pieces[0].ends else hidden[:0]
        last, rows = -1, []
        for piece in self.pieces:
            last += len(piece.tokens)
            if piece.ends:
                rows.append(last)
        return hidden[rows]


@dataclass(frozen=True)
class Decode:
    """One token for each of some sequences; every row gets an answer."""

    rows: Sequence[DecodeRow]
    answer: Asked

    name = "decode"

    @property
    def appends(self) -> list[tuple[str, int]]:
        """(sequence, new tokens)."""
        return [(row.id, 1) for row in self.rows]

    @property
    def row_count(self) -> int:
        """Rows of its hidden state."""
        return len(self.rows)

    def operation(self, first: bool) -> str:
        """Name of the stage's operation."""
        return "decode_tokens" if first else "decode_hidden"

    def run(self, stage: Stage, hidden: torch.Tensor | None) -> torch.Tensor:
        """Hidden state [B, H] after `stage`; `hidden` is that before it, None for the first."""
        if hidden is None:
            return stage.decode_tokens(self.rows)
        return stage.decode_hidden(self.rows, hidden)

    def answered(self, hidden: torch.Tensor) -> torch.Tensor:
        """The rows that want an answer."""
        return hidden


Work = Prefill | Decode
