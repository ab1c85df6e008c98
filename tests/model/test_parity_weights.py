"""`ParityWeights` against a transcription of the origin's formula, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.errors import InvalidInputError
from model.config import LlamaConfig
from model.parity_weights import ParityWeights, _fnv1a, parity_values
from model.weights import layer_names, stage_names, stage_nbytes


def config(**options: object) -> LlamaConfig:
    sizes = {
        "hidden_size": 4,
        "intermediate_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 2,
        "vocab_size": 7,
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
    }
    return LlamaConfig(**{**sizes, **options})  # type: ignore[arg-type]


def one_value(name: str, index: int, base: float, scale: float) -> np.float32:
    """Value `index` as the Rust test computes it, in wrapping 32-bit integers and float32."""
    value = 0x811C9DC5
    for byte in name.encode():
        value ^= byte
        value = value * 0x01000193 % 2**32
    mixed = (value + (index % 2**32) * 0x9E3779B9) % 2**32
    turn = index % 17
    mixed = (mixed << turn | mixed >> (32 - turn)) % 2**32
    centred = np.float32(mixed % 23) - np.float32(11.0)
    return np.float32(base) + centred * np.float32(scale)


@pytest.mark.parametrize(
    ("text", "value"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)]
)
def test_hash_is_fnv_1a(text: str, value: int) -> None:
    assert _fnv1a(text) == value


@given(
    name=st.text(max_size=40),
    length=st.integers(1, 200),
    base=st.sampled_from([0.0, 1.0]),
    scale=st.sampled_from([0.005, 0.015, 0.02]),
)
def test_values_are_the_origins(name: str, length: int, base: float, scale: float) -> None:
    found = parity_values(name, length, base, scale)
    expected = [one_value(name, index, base, scale) for index in range(length)]
    assert found.dtype == torch.float32
    assert found.tolist() == [float(value) for value in expected]


def test_values_far_in_are_the_origins() -> None:
    length = 3_000_000  # several chunks
    found = parity_values("model.embed_tokens.weight", length, 0.0, 0.02)
    for index in [0, 16, 17, 1_114_111, 1_114_112, 1_114_113, 2_228_224, length - 1]:
        expected = one_value("model.embed_tokens.weight", index, 0.0, 0.02)
        assert float(found[index]) == float(expected)


def test_names_bases_and_scales() -> None:
    weights = ParityWeights(config())
    cases = [
        ("model.embed_tokens.weight", (7, 4), 0.0, 0.02),
        ("model.norm.weight", (4,), 1.0, 0.005),
        ("model.layers.2.input_layernorm.weight", (4,), 1.0, 0.005),
        ("model.layers.0.post_attention_layernorm.weight", (4,), 1.0, 0.005),
    ]
    for name, shape, base, scale in cases:
        found = weights.tensor(name)
        assert found.shape == shape
        assert found.flatten()[3] == float(one_value(name, 3, base, scale))
        assert weights.nbytes(name) == found.nbytes
    for name, shape in [
        ("model.layers.0.self_attn.qkv_proj", (12, 4)),
        ("model.layers.1.self_attn.o_proj", (4, 4)),
        ("model.layers.2.mlp.gate_up_proj", (16, 4)),
        ("model.layers.2.mlp.down_proj", (4, 8)),
        ("lm_head", (7, 4)),
    ]:
        weight, bias = weights.linear(name)
        assert weight.shape == shape
        assert bias is None
        # hashed by the fused name, without ".weight"
        assert weight.flatten()[5] == float(one_value(name, 5, 0.0, 0.015))
        assert weights.nbytes(name) == weight.nbytes


def test_the_head_is_never_tied() -> None:
    weights = ParityWeights(config(tie_word_embeddings=True))
    assert weights.has("lm_head.weight")
    assert weights.has("model.embed_tokens.weight")
    assert not weights.has("model.layers.3.input_layernorm.weight")
    assert not torch.equal(
        weights.linear("lm_head").weight, weights.tensor("model.embed_tokens.weight")
    )


def test_biases_and_head_norms_where_the_configuration_has_them() -> None:
    qwen2 = ParityWeights(config(model_type="qwen2", attention_bias=True))
    bias = qwen2.linear("model.layers.0.self_attn.qkv_proj").bias
    assert bias is not None
    assert bias.shape == (12,)
    name = "model.layers.0.self_attn.qkv_proj.bias"
    assert float(bias[7]) == float(one_value(name, 7, 0.0, 0.015))
    assert qwen2.nbytes("model.layers.0.self_attn.qkv_proj") == (12 * 4 + 12) * 4
    assert qwen2.linear("model.layers.0.self_attn.o_proj").bias is None
    qwen3 = ParityWeights(config(model_type="qwen3", attention_bias=True, qk_norm=True))
    assert qwen3.linear("model.layers.0.self_attn.o_proj").bias is not None
    assert qwen3.tensor("model.layers.1.self_attn.q_norm.weight").shape == (2,)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.3.input_layernorm.weight",
        "model.layers.01.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "lm_head.weight",
        "nothing",
    ],
)
def test_tensors_the_model_has_not(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"no tensor '{name}'"):
        ParityWeights(config()).tensor(name)


@pytest.mark.parametrize("name", ["model.layers.3.mlp.down_proj", "model.layers.0.mlp.up_proj"])
def test_linears_the_model_has_not(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"no linear '{name}'"):
        ParityWeights(config()).linear(name)


def test_names_of_a_layer_and_a_stage() -> None:
    weights = ParityWeights(config(model_type="qwen3", qk_norm=True))
    assert [name.removeprefix("model.layers.1.") for _, name in layer_names(weights.config, 1)] == [
        "input_layernorm.weight",
        "self_attn.qkv_proj",
        "self_attn.q_norm.weight",
        "self_attn.k_norm.weight",
        "self_attn.o_proj",
        "post_attention_layernorm.weight",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    ]
    names = stage_names(weights, range(1, 3), embed=True, head=True)
    assert len(names) == 2 * 8 + 3
    total = 0
    for kind, name in names:
        held = [weights.tensor(name)] if kind == "tensor" else weights.linear(name)
        total += sum(value.nbytes for value in held if value is not None)
    assert stage_nbytes(weights, range(1, 3), embed=True, head=True) == total
