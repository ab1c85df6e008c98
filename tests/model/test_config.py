"""`LlamaConfig` reads what transformers writes, old and new, and refuses the rest by name."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from kernels.errors import CheckpointError, InvalidInputError, UnsupportedError
from model.config import LlamaConfig
from model.rope_scaling import RopeScaling

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 101,
}
SIZES = {key: value for key, value in TINY.items() if key != "model_type"}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def written(config: transformers.PretrainedConfig, folder: Path) -> LlamaConfig:
    config.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return LlamaConfig.from_json(folder)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (transformers.LlamaConfig, {}),
        (transformers.LlamaConfig, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        (transformers.LlamaConfig, {"head_dim": 32, "attention_bias": True}),
        (transformers.LlamaConfig, {"eos_token_id": [2, 7, 9], "bos_token_id": None}),
        (transformers.LlamaConfig, {"dtype": "bfloat16", "pretraining_tp": 2}),
        (transformers.LlamaConfig, {"architectures": ["LlamaForCausalLM"], "pad_token_id": 0}),
        (transformers.MistralConfig, {"num_key_value_heads": 2}),
        (transformers.MistralConfig, {"sliding_window": None, "num_key_value_heads": 1}),
        (
            transformers.MistralConfig,
            {"sliding_window": 7, "rms_norm_eps": 1e-5, "num_key_value_heads": 4},
        ),
        (transformers.Qwen2Config, {"num_key_value_heads": 2}),
        (
            transformers.Qwen2Config,
            {
                "num_key_value_heads": 4,
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 1,
            },
        ),
        (transformers.Qwen3Config, {"num_key_value_heads": 2}),
        (transformers.Qwen3Config, {"num_key_value_heads": 2, "head_dim": 16}),
        (transformers.Qwen3Config, {"num_key_value_heads": 2, "attention_bias": True}),
        (
            transformers.Qwen3Config,
            {
                "num_key_value_heads": 2,
                "use_sliding_window": True,
                "sliding_window": 5,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
        ),
    ],
)
def test_reads_what_transformers_writes(
    cls: type[transformers.PretrainedConfig], options: dict[str, Any], tmp_path: Path
) -> None:
    theirs = cls(**SIZES, **options)
    ours = written(theirs, tmp_path)
    family = theirs.model_type
    for name in (*SIZES, "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.model_type == family
    assert ours.head_dim == getattr(theirs, "head_dim", None) or 64 // 4
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope_scaling is None
    assert ours.qk_norm == (family == "qwen3")
    assert ours.attention_bias == (family == "qwen2" or getattr(theirs, "attention_bias", False))
    assert ours.has_o_bias == (family != "qwen2" and getattr(theirs, "attention_bias", False))
    eos = theirs.eos_token_id
    assert ours.eos_token_ids == tuple(
        eos if isinstance(eos, list) else [] if eos is None else [eos]
    )
    assert ours.bos_token_id == theirs.bos_token_id
    types = getattr(theirs, "layer_types", None)
    for layer in range(theirs.num_hidden_layers):
        slides = family == "mistral" if types is None else types[layer] == "sliding_attention"
        assert ours.window(layer) == (theirs.sliding_window if slides else None)


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
@pytest.mark.parametrize("first", [0, 1, 2, 3, 28])
def test_older_files_say_where_sliding_begins(family: str, first: int) -> None:
    theirs = getattr(transformers, f"{family}Config")(
        **SIZES,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=first,
    )
    raw = theirs.to_dict()
    del raw["layer_types"]
    assert LlamaConfig.from_dict(raw) == LlamaConfig.from_dict(theirs.to_dict())


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_default_configurations_are_read(family: str, tmp_path: Path) -> None:
    written(getattr(transformers, f"{family}Config")(), tmp_path)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_theta": 5e5}, (5e5, None)),
        ({"rope_theta": 5e5, "rope_scaling": None}, (5e5, None)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, (5e5, None)),
        ({}, (1e4, None)),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            (1e4, RopeScaling("linear", 4.0)),
        ),
        (
            {"rope_theta": 2e4, "rope_scaling": {"rope_type": "dynamic", "factor": 2}},
            (2e4, RopeScaling("dynamic", 2)),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            (5e5, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)),
        ),
        (
            {
                "rope_theta": 1.0,
                "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 7e4},
            },
            (7e4, RopeScaling("linear", 3.0)),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 512},
            (1e4, RopeScaling("yarn", 4.0, original_max_position_embeddings=512)),
        ),
        (
            {
                "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 128},
                "max_position_embeddings": 512,
            },
            (1e4, RopeScaling("yarn", 4.0, original_max_position_embeddings=128)),
        ),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 2.0,
                    "beta_fast": None,
                    "truncate": False,
                },
                "original_max_position_embeddings": 64,
            },
            (
                1e4,
                RopeScaling("yarn", 2.0, original_max_position_embeddings=64, truncate=False),
            ),
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e4},
                    "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e4},
                }
            },
            (3e4, RopeScaling("linear", 2.0)),
        ),
    ],
)
def test_rope_fields_in_every_spelling(fields: dict[str, Any], expected: object) -> None:
    config = LlamaConfig.from_dict({**TINY, **fields})
    assert (config.rope_theta, config.rope_scaling) == expected


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "llama3", **LLAMA3},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 16.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
        },
    ],
)
def test_rope_parameters_as_transformers_completes_them(
    rope: dict[str, Any], tmp_path: Path
) -> None:
    theirs = transformers.LlamaConfig(
        **SIZES, max_position_embeddings=16384, rope_parameters={**rope, "rope_theta": 5e5}
    )
    ours = written(theirs, tmp_path)
    assert ours.rope_theta == 5e5
    assert ours.rope_scaling is not None
    assert ours.rope_scaling.kind == rope["rope_type"]
    for name, value in theirs.to_dict()["rope_parameters"].items():
        if name not in ("rope_type", "rope_theta"):
            assert getattr(ours.rope_scaling, name) == value


def test_fallbacks() -> None:
    config = LlamaConfig.from_dict(TINY)
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-6, 1e4)
    assert not config.qk_norm
    assert not config.attention_bias
    assert config.eos_token_ids == ()


def test_dynamic_scaling_stretches_the_positions() -> None:
    raw = {**TINY, "max_position_embeddings": 100}
    assert LlamaConfig.from_dict(raw).max_seq_len == 100
    raw["rope_scaling"] = {"type": "dynamic", "factor": 2.5}
    assert LlamaConfig.from_dict(raw).max_seq_len == 250
    raw["rope_scaling"] = {"type": "linear", "factor": 2.5}
    assert LlamaConfig.from_dict(raw).max_seq_len == 100


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "mixtral"}, "model_type is 'mixtral'"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "supported for llama: LlamaForCausalLM"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is True"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quant_method 'gptq'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method 'awq'"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type is 'longrope'"),
        ({"rope_scaling": {"rope_type": {}, "factor": 2.0}}, "rope_type|differs by layer type"),
        (
            {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2, 1]}},
            r"mrope_section = \[1, 2, 1\]",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast = 3"),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e4},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e5},
                }
            },
            "differs by layer type",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
            "partial_rotary_factor is 0.25",
        ),
        ({"sliding_window": 16, "max_position_embeddings": 64}, "sliding_window is 16"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias is True"),
        (
            {"model_type": "mistral", "layer_types": ["full_attention"] * 3, "sliding_window": 4},
            "layer_types is",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["full_attention"] * 2 + ["linear_attention"]},
            "layer_types has 'linear_attention'",
        ),
        ({"qk_norm": True}, "qk_norm is True"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"residual_multiplier": 0.5}, "residual_multiplier is 0.5"),
        ({"bos_token_id": None, "add_cross_attention": True}, "add_cross_attention is True"),
    ],
)
def test_unsupported_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        LlamaConfig.from_dict({**TINY, **fields})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": 0}, "vocab_size is 0, expected a positive integer"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_attention_heads": 2.0}, "num_attention_heads is 2.0"),
        ({"intermediate_size": "96"}, "intermediate_size is '96'"),
        ({"num_key_value_heads": True}, "num_key_value_heads is True"),
        ({"num_key_value_heads": 3}, "expected a multiple of num_key_value_heads, 3"),
        ({"num_attention_heads": 5}, "expected a multiple of num_attention_heads, 5"),
        ({"head_dim": 15}, "head_dim is 15, expected an even number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": "10000"}, "rope_theta is '10000'"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"attention_bias": 1}, "attention_bias is 1"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"eos_token_id": [1, None]}, "eos_token_id is"),
        ({"bos_token_id": True}, "bos_token_id is True"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_scaling": {"type": "linear"}}, "needs the field factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor of linear rope scaling is 0"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor of linear"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "needs the field low_freq_factor"),
        (
            {"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
            "high_freq_factor of llama3 rope scaling is 1.0",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": "no"}},
            "truncate of yarn rope scaling is 'no'",
        ),
        ({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "head_dim is 2"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4}
            | {"max_window_layers": -1},
            "max_window_layers is -1",
        ),
        ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ({"model_type": "qwen3", "layer_types": "full_attention"}, "expected a list of names"),
        (
            {"model_type": "qwen3", "layer_types": ["sliding_attention"] * 3, "sliding_window": 4},
            "sliding_window is None",
        ),
    ],
)
def test_nonsense_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        LlamaConfig.from_dict({**TINY, **fields})


def test_unknown_fields() -> None:
    with pytest.warns(UserWarning, match="unsloth_version='2025.1'"):
        LlamaConfig.from_dict({**TINY, "unsloth_version": "2025.1"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LlamaConfig.from_dict(
            {**TINY, "num_experts": 0, "logit_scale": None, "_name_or_path": "x", "use_cache": True}
        )


def test_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        LlamaConfig.from_json(tmp_path)
    file = tmp_path / "config.json"
    for text, words in [
        ("{", "is not valid JSON"),
        ("[1]", "holds a list, expected a JSON object"),
        (json.dumps({**TINY, "vocab_size": -3}), r"config\.json: vocab_size is -3"),
    ]:
        file.write_text(text)
        with pytest.raises(CheckpointError, match=words):
            LlamaConfig.from_json(tmp_path)
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        LlamaConfig.from_json(file)
    file.write_text(json.dumps({**TINY, "model_type": "gpt2"}))
    with pytest.raises(UnsupportedError, match=r"config\.json: model_type is 'gpt2'"):
        LlamaConfig.from_json(file)


def test_layers_are_in_range() -> None:
    config = LlamaConfig.from_dict(TINY)
    for layer in (-1, 3):
        with pytest.raises(InvalidInputError, match=f"layer is {layer}, expected 0 to 2"):
            config.window(layer)


def test_frozen() -> None:
    config = LlamaConfig.from_dict(TINY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.vocab_size = 5  # type: ignore[misc]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = [*TINY, "num_key_value_heads", "head_dim", "rope_scaling", "rope_parameters", "rope_theta"]
FIELDS += ["sliding_window", "layer_types", "architectures", "eos_token_id", "rms_norm_eps"]
FIELDS += ["max_window_layers", "use_sliding_window", "attention_bias", "quantization_config"]


@given(
    family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    changes=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3),
    rope=st.dictionaries(
        st.sampled_from(["rope_type", "factor", "rope_theta", "truncate", "mscale", "beta_fast"]),
        JSON | st.sampled_from(["linear", "dynamic", "llama3", "yarn", "default"]),
    ),
)
def test_any_json_is_read_or_refused(
    family: str, changes: dict[str, Any], rope: dict[str, Any]
) -> None:
    raw = {**TINY, "model_type": family, "rope_parameters": rope, **changes}
    try:
        config = LlamaConfig.from_dict(raw)
    except (InvalidInputError, UnsupportedError):
        return
    assert config.num_attention_heads % config.num_key_value_heads == 0
