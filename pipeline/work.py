"""One microbatch of a call: what it asks of the first stage, of later ones, and of the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from model.stage import DecodeRow
from pipeline.interfaces import Stage


class Answer(Enum):
    """What the last stage makes of a hidden state [N, H]."""

    LOGITS = "logits"  # float32 [N, V]
    GREEDY = "greedy"  # int64 [N], ties to the lowest id

    def of(self, stage: Stage, hidden: torch.Tensor) -> torch.Tensor:
        """Ask `stage` for it."""
        return stage.logits(hidden) if self is Answer.LOGITS else stage.greedy(hidden)


@dataclass(frozen=True)
class Prefill:
    """Tokens appended to one sequence; the answer is for the last of them or for all."""

    id: str
    tokens: list[int]
    all_rows: bool = False

    @property
    def appends(self) -> list[tuple[str, int]]:
        """(sequence, new tokens)."""
        return [(self.id, len(self.tokens))]

    def operation(self, first: bool) -> str:
        """Name of the stage's operation."""
        return "prefill_tokens" if first else "prefill_hidden"

    def run(self, stage: Stage, hidden: torch.Tensor | None) -> torch.Tensor:
        """Hidden state [T, H] after `stage`; `hidden` is that before it, None for the first."""
        if hidden is None:
            return stage.prefill_tokens(self.id, self.tokens)
        return stage.prefill_hidden(self.id, hidden)

    def answered(self, hidden: torch.Tensor) -> torch.Tensor:
        """The rows that want an answer."""
        return hidden if self.all_rows else hidden[-1:]


@dataclass(frozen=True)
class Decode:
    """One token for each of some sequences; every row gets an answer."""

    rows: Sequence[DecodeRow]

    @property
    def appends(self) -> list[tuple[str, int]]:
        """(sequence, new tokens)."""
        return [(row.id, 1) for row in self.rows]

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
