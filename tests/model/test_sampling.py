"""Sampling: transformers' filters, draws that depend on the seed alone, and the law they follow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kernels.errors import InvalidInputError
from model import sampling as sampling_module
from model.counter_random import uniform
from model.logits_filters import filter_logits, keep_top_p
from model.sampling import SamplingParams, sample


def normal(rows: int, vocab: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def draw(
    logits: torch.Tensor, params: SamplingParams, step: int = 0, **options: Any
) -> torch.Tensor:
    rows = logits.shape[0]
    return sample(logits, params, torch.arange(rows), torch.full((rows,), step), **options)


def transformers_filters(params: SamplingParams) -> LogitsProcessorList:
    """In the order of `GenerationMixin._get_logits_processor`."""
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    return steps


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 4),
    vocab=st.sampled_from([1, 2, 17, 100, 2000]),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 50, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
)
def test_filters_are_those_of_transformers(
    rows: int,
    vocab: int,
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
) -> None:
    params = SamplingParams(temperature, top_k, top_p, min_p, penalty)
    logits = normal(rows, vocab, seed)
    history = torch.randint(vocab, (rows, 9), generator=torch.Generator().manual_seed(seed))
    expected = transformers_filters(params)(torch.LongTensor(history), logits.clone()).softmax(-1)
    found = filter_logits(logits, params, history.tolist()).softmax(-1)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_a_history_of_other_lengths_and_repeated_tokens() -> None:
    logits = normal(3, 11)
    params = SamplingParams(temperature=1.0, repetition_penalty=2.0)
    history = [[], [4, 4, 4], [0, 10]]
    found = filter_logits(logits, params, history)
    processor = RepetitionPenaltyLogitsProcessor(2.0)
    for row, tokens in enumerate(history):
        ids = torch.tensor([tokens], dtype=torch.int64)
        expected = processor(ids, logits[row : row + 1].clone()).softmax(-1)
        torch.testing.assert_close(found[row : row + 1].softmax(-1), expected)


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("p", [0.3, 0.9, 0.999])
def test_a_wide_nucleus_is_found_too(spread: float, p: float) -> None:
    """Flat distributions need more tokens than are looked at first; a peaked one does not."""
    logits = torch.cat([normal(2, 20_000, spread=spread), normal(1, 20_000, spread=20.0)])
    found = keep_top_p(logits, p)
    expected = TopPLogitsWarper(p)(torch.zeros(3, 1), logits)
    if spread:  # without ties; summed in float32 there, in float64 here: a token or two may differ
        assert ((found == -math.inf) != (expected == -math.inf)).sum() <= 2 * 3
    else:
        assert torch.isfinite(found[:2]).all()  # all tie, so all stay
    for row in range(3):
        assert torch.equal(keep_top_p(logits[row : row + 1], p)[0], found[row])


def test_ties_with_the_last_kept_token_stay() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    for params in (SamplingParams(1.0, top_k=2), SamplingParams(1.0, top_p=0.6)):
        kept = filter_logits(logits, params, None) > -math.inf
        assert kept.tolist() == [[True, True, True, True, False]]


def test_greedy_takes_the_first_maximum() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 5.0, 5.0], [-math.inf, -math.inf, 1.0]])
    assert draw(logits, SamplingParams()).tolist() == [1, 0, 2]
    assert SamplingParams().is_greedy
    assert not SamplingParams(repetition_penalty=1.1).is_greedy
    assert not SamplingParams(temperature=0.1).is_greedy
    penalised = SamplingParams(repetition_penalty=2.0)
    found = draw(logits, penalised, history=[[1], [0, 1], [2]])
    assert found.tolist() == [2, 2, 2]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocab", [5, 257, 40_001])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.9, seed=3),
        SamplingParams(temperature=1.3, top_k=40, top_p=0.9, min_p=0.01, seed=3),
        SamplingParams(temperature=0.8, repetition_penalty=1.2, top_p=0.7, seed=3),
    ],
)
def test_a_row_does_not_depend_on_its_batch(
    params: SamplingParams, vocab: int, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        logits = normal(9, vocab, spread=2.0)
        streams = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5])
        steps = torch.arange(9) * 7
        history = [[row % vocab, 2] for row in range(9)]
        together = sample(logits, params, streams, steps, history)
        scores = filter_logits(logits, params, history)
        for row in range(9):
            part = slice(row, row + 1)
            alone = sample(logits[part], params, streams[part], steps[part], history[part])
            assert torch.equal(alone, together[part])
            own = filter_logits(logits[part], params, history[part])
            assert torch.equal(own, scores[part])
            assert torch.equal(own.softmax(-1), scores.softmax(-1)[part])
    finally:
        torch.set_num_threads(before)


def test_draws_depend_on_seed_stream_and_step_alone() -> None:
    logits = torch.zeros(1, 10_000)

    def token(seed: int, stream: int, step: int) -> int:
        params = SamplingParams(temperature=1.0, seed=seed)
        return int(sample(logits, params, torch.tensor([stream]), torch.tensor([step])))

    assert token(1, 2, 3) == token(1, 2, 3)
    tokens = {token(*where) for where in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)]}
    assert len(tokens) == 5
    assert token(2**64 - 1, 0, 0) != token(0, 0, 0)


def test_draws_are_pinned() -> None:
    """The same seed gives the same text in later versions, too."""
    found = uniform(42, torch.tensor([0, 0, 1, 2**40]), torch.tensor([0, 1, 0, 7]))
    assert found.dtype == torch.float64
    counters = [(0, 0), (0, 1), (1, 0), (2**40, 7)]
    assert found.tolist() == [one_uniform(42, *pair) for pair in counters]
    assert found[0] == 0.3869742762400409


def one_uniform(seed: int, stream: int, step: int) -> float:
    """SplitMix64 absorbing the three counters, in Python's unbounded integers."""
    state = 0
    for word in (seed, stream, step):
        state = ((state ^ word) + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return (state >> 11) / 2**53


@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(-(2**63), 2**63 - 1),
    step=st.integers(0, 2**63 - 1),
)
def test_numbers_are_the_generators(seed: int, stream: int, step: int) -> None:
    found = uniform(seed, torch.tensor([stream]), torch.tensor([step]))
    assert float(found) == one_uniform(seed, stream % 2**64, step)
    assert 0 <= float(found) < 1


def test_numbers_are_even_along_streams_and_steps() -> None:
    for streams, steps in [(torch.arange(50_000), 0), (torch.zeros(50_000, dtype=torch.int64), 1)]:
        found = uniform(0, streams, torch.arange(50_000) * steps).numpy()
        counts, _ = np.histogram(found, bins=100, range=(0, 1))
        chi_square = ((counts - 500.0) ** 2 / 500.0).sum()
        assert 55 < chi_square < 160  # 99 degrees of freedom; both ends below 1 in 1000
        assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, seed=11),
        SamplingParams(temperature=0.5, top_k=5, seed=11),
        SamplingParams(temperature=1.5, top_p=0.8, min_p=0.05, seed=11),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    draws = 20_000
    logits = normal(1, 12, seed=5, spread=1.5)
    expected = filter_logits(logits, params, None).double().softmax(-1)[0].numpy() * draws
    many = logits.expand(draws, -1)
    steps = torch.arange(draws)
    tokens = sample(many, params, torch.zeros(draws, dtype=torch.int64), steps)
    counts = np.bincount(tokens.numpy(), minlength=12)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    degrees = kept.sum() - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees) + 4


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-3, 1e3, 1e300])
def test_no_temperature_overflows(temperature: float) -> None:
    logits = torch.tensor([[3e38, -3e38, 1.0, 0.0]])
    token = int(draw(logits, SamplingParams(temperature=temperature)))
    assert 0 <= token < 4
    if temperature <= 1e3:
        assert token == 0


@pytest.mark.parametrize(("drawn", "token"), [(0.0, 1), (0.5, 1), (1 - 1e-9, 3), (1 - 2**-53, 3)])
def test_the_ends_of_the_distribution(
    drawn: float, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No dropped token at either end, and the rarest token is within reach."""
    monkeypatch.setattr(
        sampling_module, "uniform", lambda *_: torch.tensor([drawn], dtype=torch.float64)
    )
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, math.log(2e-9), -math.inf]])
    assert int(draw(logits, SamplingParams(temperature=1.0))) == token


@given(seed=st.integers(0, 1000), step=st.integers(0, 1000))
def test_dropped_tokens_never_come(seed: int, step: int) -> None:
    logits = torch.full((1, 50), -math.inf)
    logits[0, 7] = logits[0, 31] = -2.0
    assert int(draw(logits, SamplingParams(temperature=1.0, seed=seed), step)) in (7, 31)


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(temperature=1.0), SamplingParams(1.0, top_k=2)]
)
@pytest.mark.parametrize(
    ("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_logits_that_are_no_numbers(params: SamplingParams, value: float, shown: str) -> None:
    logits = torch.zeros(3, 4)
    logits[1] = value
    with pytest.raises(InvalidInputError, match=f"row 1 have the maximum {shown}, expected a fin"):
        draw(logits, params)
    logits[1] = 0
    if math.isnan(value):
        logits[1, 3] = value
        with pytest.raises(InvalidInputError, match="row 1"):
            draw(logits, params)


def test_shapes_are_checked() -> None:
    one = torch.zeros(1, dtype=torch.int64)
    params = SamplingParams()
    for logits in (torch.zeros(4), torch.zeros(1, 4).double(), torch.zeros(1, 0)):
        with pytest.raises(InvalidInputError, match=r"expected \[B, V\] torch.float32"):
            sample(logits, params, one, one)
    with pytest.raises(InvalidInputError, match=r"streams are \[1\] .* expected \[2\] torch.int64"):
        sample(torch.zeros(2, 4), params, one, one)
    with pytest.raises(InvalidInputError, match=r"steps are \[1\] torch.int32"):
        sample(torch.zeros(1, 4), params, one, one.int())


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (None, "needs a history of 1 rows, got none"),
        ([[1], [2]], "needs a history of 1 rows, got one of 2 rows"),
        ([[1, 4]], "history of row 0 has a token outside the vocabulary of 4"),
        ([[-1]], "history of row 0 has a token outside"),
    ],
)
def test_a_penalty_needs_a_history(history: list[list[int]] | None, words: str) -> None:
    for params in (SamplingParams(repetition_penalty=1.1), SamplingParams(1.0, 0, 1.0, 0.0, 1.1)):
        with pytest.raises(InvalidInputError, match=words):
            draw(torch.zeros(1, 4), params, history=history)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, expected a number from 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": True}, "temperature is True"),
        ({"top_k": -1}, r"top_k is -1, expected an integer from 0 \(off\)"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_p": 0.0}, "top_p is 0.0, expected a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1.1}, "min_p is 1.1, expected a number from 0 to 1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        (
            {"repetition_penalty": 0.0},
            "repetition_penalty is 0.0, expected a number from 0.001",
        ),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_parameters_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        SamplingParams(**options)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
def test_parameters_of_other_types_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} is '0.5'"):
        SamplingParams(**{name: "0.5"})  # type: ignore[arg-type]
