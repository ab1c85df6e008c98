"""A stage's own contract: what it loads, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kernels.errors import (
    CapacityError,
    CheckpointError,
    InvalidInputError,
    UnsupportedError,
)
from model.config import LlamaConfig
from model.parity_weights import ParityWeights
from model.stage import DecodeRow, LlamaStage, StageSpec
from tests.devices import DEVICE, IMPLS

CONFIG = LlamaConfig.from_dict(
    {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 31,
        "max_position_embeddings": 24,
    }
)


class Recorded(ParityWeights):
    """Parity weights that note which tensors were read."""

    def __init__(self, config: LlamaConfig, tied: bool = False) -> None:
        super().__init__(config)
        self.read: list[str] = []
        self.tied = tied

    def has(self, name):
        return super().has(name) and not (self.tied and name == "lm_head.weight")

    def tensor(self, name):
        self.read.append(name)
        return super().tensor(name)

    def linear(self, name):
        self.read.append(name)
        if self.tied and name == "lm_head":
            return type(super().linear(name))(super().tensor("model.embed_tokens.weight"), None)
        return super().linear(name)


def load(layers: range = range(3), embed: bool = True, head: bool = True, **options) -> LlamaStage:
    source = options.pop("source", None) or ParityWeights(CONFIG)
    return LlamaStage.load(source, StageSpec(layers, embed, head), **options)


def test_a_stage_reads_its_own_tensors_only() -> None:
    source = Recorded(CONFIG)
    load(range(1, 2), embed=False, head=False, source=source)
    assert source.read
    assert all(name.startswith("model.layers.1.") for name in source.read)


def test_the_final_norm_belongs_to_the_head() -> None:
    source = Recorded(CONFIG)
    load(range(2, 3), embed=False, source=source)
    assert {"model.norm.weight", "lm_head"} <= set(source.read)
    assert "model.embed_tokens.weight" not in source.read


@pytest.mark.parametrize("impl", IMPLS)
def test_tied_embeddings_are_shared_where_both_ends_live_together(impl: str) -> None:
    options = {"impl": impl, "device": DEVICE}
    tied, untied = load(source=Recorded(CONFIG, tied=True), **options), load(**options)
    assert tied.weights.embed.table is tied.weights.head
    table_bytes = CONFIG.vocab_size * CONFIG.hidden_size * 4
    assert untied.weight_bytes - tied.weight_bytes >= 0.9 * table_bytes
    assert tied.weights.head.rows_shared
    ids = torch.arange(CONFIG.vocab_size, device=DEVICE)
    expected = ParityWeights(CONFIG).tensor("model.embed_tokens.weight")
    assert torch.equal(tied.weights.embed(ids).cpu(), expected)


@pytest.mark.parametrize(
    "layers", [range(0), range(2, 2), range(1, 4), range(-1, 2), range(0, 3, 2)]
)
def test_bad_layer_ranges_are_named(layers: range) -> None:
    with pytest.raises(InvalidInputError, match="not a non-empty range of the model's 3 layers"):
        load(layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype is 'int4', expected auto, fp32, fp16, bf16"),
        ({"kv_dtype": "fp8"}, "kv_dtype is 'fp8', expected auto, fp32, fp16, bf16, int8"),
        ({"max_seq_len": 25}, "max_seq_len is 25, expected 1 to 24"),
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": True}, "block_size is True, expected an integer"),
        ({"kv_tokens": 3.5}, "kv_tokens is 3.5, expected an integer"),
        ({"device": "nowhere"}, "device is 'nowhere', expected cpu or cuda:N"),
        ({"kv_tokens": 0}, "kv_tokens is 0"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load(**options)


def test_an_explicit_implementation_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UnsupportedError, match="impl 'triton' takes CPU tensors only in"):
        load(impl="triton")


def state(stage: LlamaStage) -> tuple[list[tuple[str, int]], int]:
    lengths = [(seq_id, stage.cache_len(seq_id)) for seq_id in stage.cache.sequence_ids()]
    return lengths, stage.cache.free_blocks


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.prefill_tokens("b", []), InvalidInputError, "no tokens"),
        (lambda s: s.prefill_tokens("b", [3, 31]), InvalidInputError, "token id 31 .* of 31"),
        (lambda s: s.prefill_tokens("b", [-1]), InvalidInputError, "token id -1"),
        (lambda s: s.prefill_tokens("b", [1.7]), InvalidInputError, "expected a list of integers"),
        (lambda s: s.prefill_tokens("b", [True]), InvalidInputError, "expected a list of integers"),
        (lambda s: s.decode_hidden([], torch.zeros(0, 32)), InvalidInputError, "hidden is"),
        (lambda s: s.prefill_tokens("b", [1] * 25), CapacityError, "'b' needs 25 positions"),
        (lambda s: s.decode_tokens([("a", 1, 2)]), InvalidInputError, "'a' is at length 3"),
        (lambda s: s.decode_tokens([("b", 1, 4)]), InvalidInputError, "'b' is at length 0"),
        (lambda s: s.decode_tokens([("a", 1, 3)] * 2), InvalidInputError, "'a' appears twice"),
        (lambda s: s.decode_tokens([("a", 99, 3)]), InvalidInputError, "token id 99"),
        (
            lambda s: s.decode_hidden([("a", 1, 3)], torch.zeros(2, 32)),
            InvalidInputError,
            r"hidden is \[2, 32\]",
        ),
        (
            lambda s: s.prefill_hidden("b", torch.zeros(2, 32, dtype=torch.float64)),
            InvalidInputError,
            "torch.float64",
        ),
        (lambda s: s.logits(torch.zeros(2, 31)), InvalidInputError, r"hidden is \[2, 31\]"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(call, error, message) -> None:
    stage = load(kv_tokens=64)
    stage.prefill_tokens("a", [1, 2, 3])
    before = state(stage)
    with pytest.raises(error, match=message):
        call(stage)
    assert state(stage) == before


@pytest.mark.parametrize("place", ["meta", "cuda:0", "cuda:1"])
def test_hidden_states_of_another_device_are_named(place: str) -> None:
    stage = load()
    # Stand-ins, as there may be no two GPUs; "cuda" alone was its second when the pools were made.
    pool = SimpleNamespace(k=SimpleNamespace(device=torch.device("cuda:1")))
    stage.cache.device, stage.cache.pools = torch.device("cuda"), [pool]
    hidden = SimpleNamespace(
        ndim=2, shape=torch.Size([2, 32]), dtype=torch.float32, device=torch.device(place)
    )
    if place == "cuda:1":
        stage._check_hidden(hidden, 2)
        return
    with pytest.raises(InvalidInputError, match=rf"float32 on {place}, expected .* on cuda:1"):
        stage._check_hidden(hidden, 2)


def test_a_stage_without_an_end_says_so() -> None:
    middle = load(range(1, 2), embed=False, head=False)
    with pytest.raises(InvalidInputError, match="no embedding"):
        middle.prefill_tokens("a", [1])
    assert middle.cache.sequence_ids() == []
    with pytest.raises(InvalidInputError, match="no head"):
        middle.logits(torch.zeros(1, 32))


def test_a_kernel_that_fails_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels import override

    stage = load()
    stage.prefill_tokens("a", [1, 2, 3])
    before = state(stage)
    seen = []

    def fail(*args, **options):
        seen.append(args)
        raise RuntimeError("injected")

    with override("attention", fail), pytest.raises(RuntimeError, match="injected"):
        stage.decode_tokens([("a", 1, 3), ("b", 2, 0)])
    assert len(seen) == 1
    assert state(stage) == before
    stage.decode_tokens([("a", 1, 3)])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16", "bf16", "int8"])
def test_decode_equals_prefill_of_the_same_tokens(impl: str, kv_dtype: str) -> None:
    tokens = [5, 9, 2, 30, 11, 7, 1, 0, 22]
    options = {"impl": impl, "kv_dtype": kv_dtype, "block_size": 4, "device": DEVICE}
    whole = load(**options)
    expected = whole.logits(whole.prefill_tokens("a", tokens))
    stepped = load(**options)
    hidden = [stepped.prefill_tokens("a", tokens[:4])]
    for pos in range(4, len(tokens)):
        hidden.append(stepped.decode_tokens([DecodeRow("a", tokens[pos], pos)]))
    actual = stepped.logits(torch.cat(hidden))
    # The two ways sum in different orders. Where that moves a K or V across a rounding border of
    # a lossy layout, one element differs by that layout's whole step, relative to its size.
    bound = {"fp32": 1e-5, "fp16": 2**-11, "bf16": 2**-8, "int8": 2**-7}[kv_dtype]
    assert (actual - expected).abs().max().item() < bound
    assert stepped.greedy(torch.cat(hidden)).tolist() == actual.argmax(-1).tolist()


def test_repr_says_what_the_stage_is() -> None:
    assert repr(load(range(0, 2), head=False, kv_dtype="int8")) == (
        "LlamaStage(layers=0-1, embed, impl=cpu, device=cpu, kv=int8)"
    )


def test_weights_that_float16_cannot_hold_are_an_error() -> None:
    class Large(ParityWeights):
        def tensor(self, name):
            value = super().tensor(name)
            return value * 1e6 if "post_attention" in name else value

    with pytest.raises(CheckpointError, match="post_attention_layernorm"):
        load(source=Large(CONFIG), dtype="fp16", impl="reference")


def test_pools_take_no_memory_before_they_are_written() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc")

    def resident() -> int:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) * 1024

    before = resident()
    stage = load(kv_tokens=1_000_000, kv_dtype="fp32")
    assert stage.kv_bytes > 300e6
    assert resident() - before < 100e6
