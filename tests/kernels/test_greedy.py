"""Logits' dtype and scale, and greedy choice among equals."""

from __future__ import annotations

import pytest
import torch

from kernels import linear, logits
from kernels.logits.cpu import first_maximum
from tests.devices import IMPLS

pytestmark = pytest.mark.usefixtures("on_device")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_are_float32_of_the_normed_hidden(impl: str, dtype: torch.dtype) -> None:
    hidden = torch.tensor([[3.0, -3.0, 3.0, -3.0]])
    head = linear.pack(torch.eye(4).to(dtype), impl=impl)
    out = logits.logits(hidden, torch.tensor([1.0, 2.0, 0.5, 0.0]), 0.0, head, impl=impl)
    assert out.dtype == torch.float32
    assert out.tolist() == [[1.0, -2.0, 0.5, 0.0]]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_go_to_the_lowest_id(impl: str, dtype: torch.dtype) -> None:
    weight = torch.zeros(300, 8)
    weight[[250, 17, 130, 18], 0] = 2.0  # the same logit for four tokens
    weight[[0, 299], 1] = 2.0
    head = linear.pack(weight.to(dtype), impl=impl)
    hidden = torch.zeros(3, 8)
    hidden[0, 0] = hidden[1, 1] = 1.0
    tokens = logits.greedy(hidden, torch.ones(8), 1e-5, head, impl=impl)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [17, 0, 0]  # the last row: all logits are zero


@pytest.mark.parametrize("count", [1, 2, 255, 511, 512, 513, 700, 768, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_maximum(count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(count)
    few_values = torch.randint(-3, 4, (200, count)).to(dtype)  # many ties
    one_value = torch.full((1, count), -7.0, dtype=dtype)
    peaks = torch.eye(count, dtype=dtype)
    for scores in (few_values, one_value, peaks, peaks + peaks.flip(1), few_values - torch.inf):
        is_best = scores == scores.amax(dim=-1, keepdim=True)
        assert torch.equal(first_maximum(scores), is_best.int().argmax(dim=-1))


@pytest.mark.parametrize("impl", IMPLS)
def test_greedy_is_the_argmax_of_logits(impl: str) -> None:
    torch.manual_seed(0)
    hidden, norm = torch.randn(33, 64), torch.rand(64)
    head = linear.pack(torch.randn(1000, 64).bfloat16(), impl=impl)
    scores = logits.logits(hidden, norm, 1e-5, head, impl=impl)
    lowest = [int((row == row.max()).nonzero()[0]) for row in scores]
    assert logits.greedy(hidden, norm, 1e-5, head, impl=impl).tolist() == lowest


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("count", [60, 600])  # "cpu" takes more than 512 block by block
def test_a_row_with_a_nan_gets_the_first_token(impl: str, count: int) -> None:
    weight = torch.full((count, 1), -8.0)
    weight[count - 50 : count - 46, 0] = torch.tensor([torch.inf, 3.0, torch.nan, 5.0])
    head = linear.pack(weight, impl=impl)
    assert logits.greedy(torch.ones(1, 1), torch.ones(1), 1e-5, head, impl=impl).item() == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_without_a_finite_logit_gets_the_first_token(impl: str) -> None:
    head = linear.pack(torch.full((600, 1), -torch.inf), impl=impl)
    assert logits.greedy(torch.ones(1, 1), torch.ones(1), 1e-5, head, impl=impl).item() == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_infinity_is_a_maximum(impl: str) -> None:
    weight = torch.arange(600.0).unsqueeze(1)
    weight[[401, 400, 599]] = torch.inf
    head = linear.pack(weight, impl=impl)
    assert logits.greedy(torch.ones(1, 1), torch.ones(1), 1e-5, head, impl=impl).item() == 400


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_that_round_to_the_same_are_a_tie(impl: str, dtype: torch.dtype) -> None:
    weight = torch.zeros(300, 2)
    weight[[40, 290], 0] = 1.0
    weight[290, 1] = torch.finfo(dtype).eps / 8  # more, were it not rounded
    head = linear.pack(weight.to(dtype), impl=impl)
    hidden, norm = torch.ones(1, 2), torch.ones(2)
    scores = logits.logits(hidden, norm, 0.0, head, impl=impl)
    assert torch.equal(scores, scores.to(dtype).float())
    assert logits.greedy(hidden, norm, 0.0, head, impl=impl).item() == 40
