"""Every family and option against transformers, on checkpoints that transformers wrote."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from model.stage import DecodeRow, LlamaStage, StageSpec
from tests.devices import DEVICE
from tests.model.oracle import FAMILIES, Family, greedy_logits, write_checkpoint

PROMPT = [1, 17, 42, 5, 63, 11, 90, 33, 8, 71, 25, 54, 3, 77, 12, 29, 60, 44, 81, 19, 6, 95, 38, 2]
STEPS = 20
# What differs in kernels: tied and odd heads, biases, windows, norms, and RoPE that the batch's
# lengths decide.
IN_TRITON = (
    "llama-mha-tied",
    "llama-mqa-head-dim",
    "llama-dynamic-rope",
    "mistral-window",
    "qwen2-window",
    "qwen3",
)


def our_logits(
    folder: Path, prompt: list[int], tokens: list[int], cuts: list[int], impl: str
) -> torch.Tensor:
    """Logits [len(tokens) + 1, V] of a model cut before the layers `cuts`."""
    bounds = [0, *cuts, 3]
    stages = [
        LlamaStage.load(
            folder,
            StageSpec(range(start, stop), embed=start == 0, head=stop == 3),
            impl=impl,
            device=DEVICE if impl == "triton" else "cpu",
            kv_dtype="fp32",
            block_size=5,
        )
        for start, stop in itertools.pairwise(bounds)
    ]
    hidden = stages[0].prefill_tokens("s", prompt)
    for stage in stages[1:]:
        hidden = stage.prefill_hidden("s", hidden)
    rows = [stages[-1].logits(hidden[-1:])[0]]
    for step, token in enumerate(tokens):
        batch = [DecodeRow("s", token, len(prompt) + step)]
        hidden = stages[0].decode_tokens(batch)
        for stage in stages[1:]:
            hidden = stage.decode_hidden(batch, hidden)
        rows.append(stages[-1].logits(hidden)[0])
    return torch.stack(rows).cpu()


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_logits_and_greedy_tokens_equal_transformers(
    family: Family, impl: str, tmp_path: Path
) -> None:
    oracle = write_checkpoint(tmp_path, family)
    expected, tokens = greedy_logits(oracle, PROMPT, STEPS)
    actual = our_logits(tmp_path, PROMPT, tokens, [1], impl)
    assert (actual - expected).abs().max().item() < 1e-4
    assert actual.argmax(-1)[:-1].tolist() == tokens


@pytest.mark.parametrize("name", IN_TRITON)
def test_triton_equals_transformers(name: str, tmp_path: Path) -> None:
    [family] = [family for family in FAMILIES if family.name == name]
    oracle = write_checkpoint(tmp_path, family)
    steps = STEPS if DEVICE == "cuda" else 3
    # Past the trained length of dynamic RoPE, so that its base moves with each step.
    prompt = PROMPT + PROMPT[:7]
    expected, tokens = greedy_logits(oracle, prompt, steps)
    actual = our_logits(tmp_path, prompt, tokens, [1], "triton")
    assert (actual - expected).abs().max().item() < 1e-4
    assert actual.argmax(-1)[:-1].tolist() == tokens


def test_sharded_checkpoint_equals_the_single_file(tmp_path: Path) -> None:
    family = FAMILIES[0]
    write_checkpoint(tmp_path / "one", family)
    write_checkpoint(tmp_path / "many", family, max_shard_size="60KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    tokens = [7, 8, 9]
    one = our_logits(tmp_path / "one", PROMPT, tokens, [2], "cpu")
    many = our_logits(tmp_path / "many", PROMPT, tokens, [2], "cpu")
    assert torch.equal(one, many)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_half_precision_is_as_close_to_float32_as_transformers_is(
    dtype: torch.dtype, impl: str, tmp_path: Path
) -> None:
    """The float32 residual stream must not lose to transformers, which keeps it in half."""
    half = write_checkpoint(tmp_path, FAMILIES[0], dtype=dtype)
    theirs, tokens = greedy_logits(half, PROMPT, STEPS)
    exact = half.float()
    rows = exact(torch.tensor([PROMPT + tokens])).logits[0, len(PROMPT) - 1 :].detach()
    ours = our_logits(tmp_path, PROMPT, tokens, [1], impl)
    their_error, our_error = (theirs - rows).abs(), (ours - rows).abs()
    assert our_error.mean() <= 1.1 * their_error.mean()
    assert our_error.max() <= 2 * their_error.max()
