"""Read splits of a model's layers: counts per stage, or inclusive ranges."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from kernels.errors import InvalidInputError

Splits = str | Sequence[int] | Sequence[range]
RULES = ("auto", "even")
"""Words that stand for splits: by weight and memory, and even by layer count."""

_RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")
_COUNT = re.compile(r"\s*(\d+)\s*")


def parse_splits(splits: Splits) -> list[range]:
    """The half-open layer range of each stage; whether they fit the model is checked elsewhere.

    Args:
        splits: layer counts (`[1, 2]` or "1,2"), inclusive ranges ("0-0,1-2") or range objects.

    Raises:
        InvalidInputError: a part is neither, or both kinds are mixed.
    """
    if isinstance(splits, str):
        return _parse_text(splits)
    parts = list(splits)
    if parts and all(isinstance(part, range) for part in parts):
        for stage, part in enumerate(parts):
            if isinstance(part, range) and part.step != 1:
                raise InvalidInputError(f"stage {stage}: {part} has a step other than 1")
        return [part for part in parts if isinstance(part, range)]
    if parts and all(isinstance(part, int) and not isinstance(part, bool) for part in parts):
        return _from_counts([part for part in parts if isinstance(part, int)])
    raise InvalidInputError(f"splits are {splits!r}; expected layer counts or range objects")


def split_rule(splits: Splits | None) -> str | None:
    """Which of `RULES` the splits name, in upper or lower case; None if they are layers or None."""
    word = splits.strip().lower() if isinstance(splits, str) else None
    return word if word in RULES else None


def check_ranges(ranges: Sequence[range], num_layers: int) -> None:
    """Check that ranges follow each other without gap or overlap and cover all layers.

    Raises `InvalidInputError` that names the stage, where it starts and where it should.
    """
    if not ranges:
        raise InvalidInputError("LlamaPipeline requires at least one stage")
    expected = 0
    for stage, layers in enumerate(ranges):
        if layers.start != expected:
            raise InvalidInputError(
                f"Llama pipeline stage {stage} range starts at {layers.start}, expected {expected}"
            )
        if layers.stop <= layers.start:
            raise InvalidInputError(
                f"Llama pipeline stage {stage} has no layers; expected at least one "
                f"starting at {expected}"
            )
        expected = layers.stop
    if expected != num_layers:
        raise InvalidInputError(
            f"Llama pipeline stages cover {expected} layers but model has {num_layers} "
            f"(stage {len(ranges) - 1} starts at {ranges[-1].start})"
        )


def even_ranges(num_layers: int, stages: int) -> list[range]:
    """Even by layer count; earlier stages take the odd layers, as the last one has the head."""
    if not 1 <= stages <= num_layers:
        raise InvalidInputError(
            f"cannot split {num_layers} layers into {stages} stages; expected 1 to {num_layers}"
        )
    share, odd = divmod(num_layers, stages)
    return _from_counts([share + (stage < odd) for stage in range(stages)])


def _from_counts(counts: Sequence[int]) -> list[range]:
    ends = list(accumulate(counts))
    return [range(end - count, end) for count, end in zip(counts, ends, strict=True)]


def _parse_text(text: str) -> list[range]:
    parts = text.split(",")
    if all(match := [_RANGE.fullmatch(part) for part in parts]):
        return [range(int(m[1]), int(m[2]) + 1) for m in match if m]
    if all(match := [_COUNT.fullmatch(part) for part in parts]):
        return _from_counts([int(m[1]) for m in match if m])
    bad = next((p for p in parts if not (_RANGE.fullmatch(p) or _COUNT.fullmatch(p))), None)
    reason = f"{bad.strip()!r} is neither" if bad is not None else "it mixes both"
    raise InvalidInputError(
        f'splits are {text!r}; expected counts like "1,2" or inclusive ranges like "0-0,1-2", '
        f"and {reason}"
    )
