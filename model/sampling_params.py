"""The parameters of sampling, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kernels.errors import InvalidInputError
from model.config_values import is_int, is_number

_ABOVE_0 = math.ulp(0.0)


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
        for name, least, most, expected in (
            ("temperature", 0.0, math.inf, "from 0"),
            ("top_p", _ABOVE_0, 1.0, "above 0 and at most 1"),
            ("min_p", 0.0, 1.0, "from 0 to 1"),
            # Beyond these a penalised float32 logit may overflow or vanish.
            ("repetition_penalty", 1e-3, 1e3, "from 0.001 to 1000"),
        ):
            value = getattr(self, name)
            if not is_number(value) or not least <= value <= most or math.isinf(value):
                raise InvalidInputError(f"{name} is {value!r}, expected a number {expected}")
        if not is_int(self.top_k) or self.top_k < 0:
            raise InvalidInputError(f"top_k is {self.top_k!r}, expected an integer from 0 (off)")
        if not is_int(self.seed) or not 0 <= self.seed < 1 << 64:
            raise InvalidInputError(f"seed is {self.seed!r}, expected an integer in [0, 2^64)")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken and the logits are not changed before."""
        return self.temperature == 0 and self.repetition_penalty == 1
