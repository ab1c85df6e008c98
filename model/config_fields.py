"""Which fields of a `config.json` change nothing here, and which must never be ignored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from kernels.errors import UnsupportedError

_UNDERSTOOD = """
    architectures attention_bias bos_token_id eos_token_id head_dim hidden_act hidden_size
    intermediate_size is_encoder_decoder layer_types max_position_embeddings max_window_layers
    mlp_bias model_type num_attention_heads num_hidden_layers num_key_value_heads
    original_max_position_embeddings partial_rotary_factor qk_norm quantization_config rms_norm_eps
    rope_interleaved rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings
    use_sliding_window vocab_size
"""

# Training, bookkeeping, generation defaults and outputs that a stage does not have. The weights'
# dtype is read from their files; `pretraining_tp` only splits a product that is then summed.
_HARMLESS = """
    attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens
    chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping embd_pdrop encoder_no_repeat_ngram_size exponential_decay_length_penalty
    experts_implementation finetuning_task forced_bos_token_id forced_eos_token_id hidden_dropout
    id2label initializer_range is_decoder keys_to_ignore_at_inference label2id length_penalty
    max_length max_sequence_length min_length name_or_path no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p unk_token_id use_bfloat16 use_cache
"""

# A field of another name that has one of these in it speaks of the architecture: to ignore it
# would compute something else than the model's authors did.
_ARCHITECTURAL = """
    activation attention attn alibi altup bias cross_ expert ffn head hidden layer lora logit
    mixture mlp moe mtp multiplier norm parallel position pruned quant rank residual rope rotary
    router scale scaling shared sink softcap sparse vision window
"""


def check_unknown_fields(raw: Mapping[str, Any]) -> None:
    """Refuse fields that would change results, and warn of those whose meaning is not known.

    A field that is null, false, zero or empty switches nothing on, and passes.

    Raises:
        UnsupportedError: a field that is not supported and looks architectural.
    """
    known = {*_UNDERSTOOD.split(), *_HARMLESS.split()}
    unknown = {
        name: value
        for name, value in raw.items()
        if value and name not in known and not name.startswith("_")
    }
    for name, value in unknown.items():
        if any(word in name.lower() for word in _ARCHITECTURAL.split()):
            raise UnsupportedError(f"{name} is {value!r}: this field is not supported")
    if unknown:
        listed = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
        warnings.warn(f"config.json has fields that Lamella does not use: {listed}", stacklevel=4)
