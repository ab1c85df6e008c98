"""A model split anywhere, in any mode, gives the whole model's logits, bit for bit.

The whole model takes the same microbatches. Where the split one cuts a batch, a whole model that
takes the batch in one piece runs products of other shapes; with float32 weights and cache that
stays below 1e-5.
"""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pipeline.llama_pipeline import LlamaPipeline
from pipeline.modes import LlamaPipelineMode
from pipeline.schedule import Plan, plan_decode
from tests.devices import DEVICE
from tests.pipeline.random_model import RandomModel, models, splits_of

ROWS = st.integers(16, 40) | st.integers(1, 40)


def prompt(model: RandomModel, row: int, length: int) -> list[int]:
    return [(5 * row + 3 * place + 1) % model.config.vocab_size for place in range(length)]


def batch(model: RandomModel, lengths: list[int], step: int) -> list[tuple[str, int, int]]:
    vocab = model.config.vocab_size
    return [(f"s{row}", (row + 7 * step) % vocab, n + step) for row, n in enumerate(lengths)]


def in_pieces(whole: LlamaPipeline, rows: list[tuple[str, int, int]], plan: Plan) -> torch.Tensor:
    size = plan.microbatch_size
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return torch.cat([whole.decode_batch(part, full_logits=True) for part in parts])


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=50, deadline=None, suppress_health_check=SLOW)
@given(
    data=st.data(),
    model=models(),
    mode=st.sampled_from(["overlapped", "batch"]),
    rows=ROWS,
    longest=st.integers(1, 14),
    seed=st.integers(0, 1000),
)
def test_split_equals_whole(
    data: st.DataObject, model: RandomModel, mode: str, rows: int, longest: int, seed: int
) -> None:
    splits = data.draw(splits_of(model.config.num_hidden_layers), label="splits")
    check_split(model, splits, mode, rows, longest, seed)


@settings(max_examples=50 if DEVICE == "cuda" else 4, deadline=None, suppress_health_check=SLOW)
@given(
    data=st.data(),
    model=models(impls=["triton"]),
    mode=st.sampled_from(["overlapped", "overlapped", "batch"]),
    rows=st.integers(16, 17) | st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_split_equals_whole_in_triton(
    data: st.DataObject, model: RandomModel, mode: str, rows: int, seed: int
) -> None:
    splits = data.draw(splits_of(model.config.num_hidden_layers), label="splits")
    check_split(model, splits, mode, rows, longest=7, seed=seed, prompts=2)


def check_split(
    model: RandomModel,
    splits: list[int],
    mode: str,
    rows: int,
    longest: int,
    seed: int,
    prompts: int = 100,
) -> None:
    """Prompts in pieces, two decode steps of logits and one of tokens, against the whole model.

    The first `prompts` rows have a prompt, the others begin with the first step.
    """
    layers = model.config.num_hidden_layers
    plan = plan_decode(LlamaPipelineMode(mode), len(splits), rows)
    event(f"{mode}, {len(splits)} stages, {'cut' if plan.overlapped else 'whole'}")
    lengths = [1 + (seed + 7 * row) % longest if row < prompts else 0 for row in range(rows)]
    with model.pipeline(splits, mode) as split, model.pipeline([layers]) as whole:
        for row, length in enumerate(lengths):
            tokens = prompt(model, row, length)
            middle = seed % length if row < 3 and length else 0
            for part in filter(None, (tokens[:middle], tokens[middle:])):
                expected = whole.prefill(f"s{row}", part)
                assert torch.equal(split.prefill(f"s{row}", part), expected)
        for step in range(2):
            got = split.decode_batch(batch(model, lengths, step), full_logits=True)
            assert got.isfinite().all()
            if plan.overlapped:
                check_at_once(model, whole, batch(model, lengths, step), got)
            assert torch.equal(got, in_pieces(whole, batch(model, lengths, step), plan))
        last = batch(model, lengths, 2)
        assert torch.equal(split.decode_greedy(last), in_pieces(whole, last, plan).argmax(1))


def check_at_once(
    model: RandomModel, whole: LlamaPipeline, rows: list[tuple[str, int, int]], got: torch.Tensor
) -> None:
    """Compare with the whole batch in one call, and undo that call."""
    at_once = whole.decode_batch(rows)
    for seq_id, _, position in rows:
        whole.truncate_kv(seq_id, position)
    assert bool(at_once.isfinite().all())
    # A cache of fewer bits may round a last-bit difference to another value.
    if (model.dtype, model.kv_dtype) == ("fp32", "fp32"):
        assert (got - at_once).abs().max() < 1e-5
