"""RoPE tables: angles in float64, cosines and sines kept as float32, one gather per call.

The scalings are those of transformers' `modeling_rope_utils`: linear (position interpolation),
dynamic (NTK, the base grows with the sequence), llama3, and yarn (Peng et al., arXiv 2309.00071).
"""

from __future__ import annotations

import math

import torch

from kernels.errors import InvalidInputError
from model.config import LlamaConfig
from model.rope_scaling import RopeScaling

_CHUNK = 4096  # positions worked on at once, so that the float64 angles stay small


def inverse_frequencies(config: LlamaConfig) -> tuple[torch.Tensor, float]:
    """Inverse frequencies [D/2] float64, and the factor on cosines and sines.

    For dynamic scaling they are those up to `max_position_embeddings`.
    """
    dim = config.head_dim
    powers = torch.arange(0, dim, 2, dtype=torch.float64) / dim  # [D/2]
    plain = config.rope_theta**-powers
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "dynamic":
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    return _yarn(plain, scaling, config), _yarn_attention_factor(scaling)


def _llama3(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Long wavelengths divided by the factor, short ones kept, those between blended."""
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / scaling.factor


def _yarn(plain: torch.Tensor, scaling: RopeScaling, config: LlamaConfig) -> torch.Tensor:
    """Interpolated where a frequency turns rarely in the trained length, else kept."""
    dim = config.head_dim

    def dimension_of(turns: float) -> float:
        trained = scaling.original_max_position_embeddings
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # as transformers does, against a division by zero
    ramp = (torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)
    interpolate = ramp.clamp(0, 1)
    return interpolate * plain / scaling.factor + (1 - interpolate) * plain


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def magnitude(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)


def _needs_no_table(config: LlamaConfig, max_len: int) -> bool:
    """Whether angles depend on the sequence's length."""
    scaling, trained = config.rope_scaling, config.max_position_embeddings
    return scaling is not None and scaling.kind == "dynamic" and max_len > trained


def rope_table_bytes(config: LlamaConfig, max_len: int) -> int:
    """Bytes of the table that `RopeTable.build` makes: [2, max_len, D/2] float32."""
    return 0 if _needs_no_table(config, max_len) else 4 * 2 * max_len * (config.head_dim // 2)


class RopeTable:
    """Cosines and sines of positions below `max_len`, for one device."""

    def __init__(self, table: torch.Tensor, dynamic: _DynamicBase | None) -> None:
        self._table = table  # [2, max_len, D/2] float32: cosines, sines
        self._dynamic = dynamic

    @classmethod
    def build(
        cls, config: LlamaConfig, max_len: int, device: torch.device | str = "cpu"
    ) -> RopeTable:
        """Work out the table, [2, max_len, D/2] float32.

        Dynamic scaling needs none where `max_len` goes beyond the trained length: its angles
        depend on the sequence's length, too.
        """
        if max_len < 1:
            raise InvalidInputError(f"max_len is {max_len}, expected at least 1")
        inv_freq, factor = inverse_frequencies(config)
        scaling = config.rope_scaling
        if _needs_no_table(config, max_len):
            assert scaling is not None
            dynamic = _DynamicBase(config, scaling.factor, device)
            return cls(torch.empty(2, 0, config.head_dim // 2, device=device), dynamic)
        table = torch.empty(2, max_len, config.head_dim // 2, dtype=torch.float32)
        for start in range(0, max_len, _CHUNK):
            stop = min(start + _CHUNK, max_len)
            angles = torch.arange(start, stop, dtype=torch.float64)[:, None] * inv_freq
            table[0, start:stop] = angles.cos() * factor
            table[1, start:stop] = angles.sin() * factor
        return cls(table.to(device), None)

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self._table.nbytes

    def rows(
        self, positions: torch.Tensor, kv_len_per_token: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines for T tokens.

        Args:
            positions: int64 [T], below `max_len`.
            kv_len_per_token: int [T], the length of each token's sequence after this call; only
                dynamic scaling reads it.

        Returns:
            cos, sin: [T, D/2] float32, contiguous.
        """
        if self._dynamic is not None:
            return self._dynamic.rows(positions, kv_len_per_token)
        cos, sin = self._table.index_select(1, positions)
        return cos, sin


class _DynamicBase:
    """NTK scaling: beyond the trained length L0, the base is theta (f L / L0 - f + 1)^(D/(D-2))."""

    def __init__(self, config: LlamaConfig, factor: float, device: torch.device | str) -> None:
        dim = config.head_dim
        self._powers = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim  # [D/2]
        self._theta = config.rope_theta
        self._trained = config.max_position_embeddings
        self._factor = factor
        self._exponent = dim / (dim - 2)

    def rows(
        self, positions: torch.Tensor, kv_len_per_token: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RopeTable.rows`; each token by its own sequence's length, whatever the batch."""
        length = kv_len_per_token.double().clamp(min=self._trained)  # [T]
        growth = self._factor * length / self._trained - (self._factor - 1)
        base = self._theta * growth**self._exponent
        angles = positions.double()[:, None] * base[:, None] ** -self._powers  # [T, D/2]
        return angles.cos().float(), angles.sin().float()
