"""RoPE tables against transformers' formulas and, where these round, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from kernels.errors import InvalidInputError
from model.config import LlamaConfig
from model.rope import RopeTable, inverse_frequencies
from model.rope_scaling import RopeScaling

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
KINDS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, **LLAMA3},
    {"rope_type": "llama3", "factor": 32.0, **LLAMA3, "original_max_position_embeddings": 8192},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    {"rope_type": "yarn", "factor": 4.0, "truncate": False, "beta_fast": 20.0, "beta_slow": 2.0},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.25, "mscale": 0.5},
    {"rope_type": "yarn", "factor": 0.5},
]


def both(
    rope: dict[str, Any], head_dim: int, theta: float, positions: int = 1024
) -> tuple[LlamaConfig, transformers.LlamaConfig]:
    theirs = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=10,
        max_position_embeddings=positions,
        rope_parameters={**rope, "rope_theta": theta},
    )
    return LlamaConfig.from_dict(theirs.to_dict()), theirs


@pytest.mark.parametrize("rope", KINDS, ids=lambda rope: f"{rope['rope_type']}-{len(rope)}")
@pytest.mark.parametrize("head_dim", [4, 64, 80, 128])
@pytest.mark.parametrize("theta", [10.0, 1e4, 5e5])
def test_frequencies_are_those_of_transformers(
    rope: dict[str, Any], head_dim: int, theta: float
) -> None:
    ours, theirs = both(rope, head_dim, theta)
    init = ROPE_INIT_FUNCTIONS.get(
        rope["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters
    )
    expected, factor = init(theirs)
    found, our_factor = inverse_frequencies(ours)
    assert found.dtype == torch.float64
    assert our_factor == pytest.approx(factor, rel=1e-12)
    # transformers' own float32 rounding is what is allowed here
    torch.testing.assert_close(found.float(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("rope", [kind for kind in KINDS if kind["rope_type"] != "dynamic"])
def test_table_is_float64_rounded_once(rope: dict[str, Any]) -> None:
    ours, _ = both(rope, 64, 5e5, positions=16384)
    table = RopeTable.build(ours, 16384)
    positions = torch.tensor([0, 1, 2, 4095, 4096, 10_003, 16383])
    cos, sin = table.rows(positions, positions + 1)
    inv_freq, factor = inverse_frequencies(ours)
    angles = positions.numpy()[:, None] * inv_freq.numpy()
    for found, expected in ((cos, np.cos(angles) * factor), (sin, np.sin(angles) * factor)):
        assert found.dtype == torch.float32
        assert found.shape == (7, 32)
        assert found.is_contiguous()
        # half a unit in the last place of float32, and a hair for float64's own cosine
        error = np.abs(found.numpy().astype(np.float64) - expected)
        assert np.all(error <= 0.5001 * np.spacing(np.abs(expected.astype(np.float32))))


@pytest.mark.parametrize("rope", KINDS, ids=lambda rope: f"{rope['rope_type']}-{len(rope)}")
def test_rows_are_those_of_transformers(rope: dict[str, Any]) -> None:
    ours, theirs = both(rope, 32, 1e4, positions=64)
    positions = torch.arange(50)
    their_cos, their_sin = LlamaRotaryEmbedding(theirs)(torch.zeros(1), positions[None])
    cos, sin = RopeTable.build(ours, 64).rows(positions, torch.full((50,), 50))
    torch.testing.assert_close(cos, their_cos[0, :, :16], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sin, their_sin[0, :, :16], rtol=1e-5, atol=1e-5)


def test_dynamic_base_follows_the_length_as_in_transformers() -> None:
    ours, theirs = both({"rope_type": "dynamic", "factor": 3.0}, 16, 1e4, positions=32)
    embedding = LlamaRotaryEmbedding(theirs)
    table = RopeTable.build(ours, ours.max_seq_len)
    assert ours.max_seq_len == 96
    start = 0
    for length in (20, 32, 33, 60, 61, 62, 96):  # prefill, in chunks, then steps of one token
        positions = torch.arange(start, length)
        their_cos, their_sin = embedding(torch.zeros(1), positions[None])
        cos, sin = table.rows(positions, torch.full((length - start,), length))
        torch.testing.assert_close(cos, their_cos[0, :, :8], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sin, their_sin[0, :, :8], rtol=1e-5, atol=1e-5)
        start = length


@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_dynamic_rows_do_not_depend_on_the_batch(lengths: list[int]) -> None:
    ours, _ = both({"rope_type": "dynamic", "factor": 4.0}, 20, 1e4, positions=100)
    table = RopeTable.build(ours, 400)
    kv_len = torch.tensor(lengths, dtype=torch.int32)
    cos, sin = table.rows(kv_len.long() - 1, kv_len)
    for row in range(len(lengths)):
        alone = table.rows(kv_len[row : row + 1].long() - 1, kv_len[row : row + 1])
        assert torch.equal(cos[row : row + 1], alone[0])
        assert torch.equal(sin[row : row + 1], alone[1])


def test_dynamic_within_the_trained_length_is_plain() -> None:
    ours, _ = both({"rope_type": "dynamic", "factor": 4.0}, 16, 1e4, positions=100)
    plain, _ = both({"rope_type": "default"}, 16, 1e4, positions=100)
    positions = torch.arange(100)
    expected = RopeTable.build(plain, 100).rows(positions, positions + 1)
    for max_len in (100, 400):  # a table, and worked out call by call
        found = RopeTable.build(ours, max_len).rows(positions, positions + 1)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_chunks_of_the_table_join() -> None:
    ours, _ = both({"rope_type": "default"}, 8, 1e4, positions=10_000)
    long, short = RopeTable.build(ours, 10_000), RopeTable.build(ours, 4096)
    positions = torch.tensor([4095, 0, 17])
    assert torch.equal(long.rows(positions, positions)[0], short.rows(positions, positions)[0])
    one = long.rows(torch.tensor([9999]), torch.tensor([10_000]))[0]
    assert float(one[0, 0]) == pytest.approx(np.cos(9999.0), abs=1e-7)


def test_positions_beyond_the_table_are_no_silent_answer() -> None:
    ours, _ = both({"rope_type": "default"}, 8, 1e4)
    with pytest.raises(RuntimeError, match="out of"):
        RopeTable.build(ours, 10).rows(torch.tensor([10]), torch.tensor([11]))


def test_bad_length() -> None:
    ours, _ = both({"rope_type": "default"}, 8, 1e4)
    with pytest.raises(InvalidInputError, match="max_len is 0, expected at least 1"):
        RopeTable.build(ours, 0)


def test_scaling_is_made_by_hand_too() -> None:
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=5,
        rope_scaling=RopeScaling("linear", 2.0),
    )
    inv_freq, factor = inverse_frequencies(config)
    assert factor == 1.0
    assert inv_freq.tolist() == pytest.approx([0.5, 0.05, 0.005, 0.0005])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"rope_theta": 1.0}, "rope_theta is 1.0, yarn rope scaling needs more than 1"),
        ({"attention_factor": float("nan")}, "attention_factor of yarn rope scaling is nan"),
    ],
)
def test_yarn_values_that_give_no_finite_angles(raw: dict[str, Any], words: str) -> None:
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 64)
    counts = {"num_hidden_layers": 1, "num_attention_heads": 4}
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4} | raw
    with pytest.raises(InvalidInputError, match=words):
        LlamaConfig.from_dict({"model_type": "llama", **sizes, **counts, "rope_parameters": yarn})
