"""Random numbers that are a function of counters alone: no state, so no order of calls matters."""

from __future__ import annotations

import torch

_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, streams: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """One number in [0, 1) per (seed, stream, step), with 53 random bits.

    Each counter is absorbed by one round of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), a
    bijection, so distinct steps of a stream never share a state.

    Args:
        seed: from 0 to 2^64 - 1.
        streams: int64 [B].
        steps: int64 [B].

    Returns:
        float64 [B], on the device of `streams`.
    """
    state = _mix(torch.full_like(streams, _signed(seed)))
    state = _mix(state ^ streams)
    state = _mix(state ^ steps)
    return _shift_right(state, 11).double() * 2.0**-53


def _mix(state: torch.Tensor) -> torch.Tensor:
    """SplitMix64's step and output function; int64 holds the unsigned words, products wrap."""
    state = state + _signed(_GOLDEN)
    state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shift_right(state, 31)


def _shift_right(state: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift of the unsigned word: int64's own shift would copy the sign into the upper bits."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >= 1 << 63 else word
