"""Triton's logits and greedy choice: one kernel's numbers for both, in any batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import get_op, linear, logits
from kernels.case_inputs import Case
from kernels.errors import UnsupportedError
from kernels.linear import PackedLinear
from kernels.linear.tiles import key_of
from kernels.logits.kernel import HEAD
from kernels.tuning import Config, forced
from kernels.workspace import counters, workspace
from tests.devices import DEVICE

pytestmark = pytest.mark.usefixtures("on_device", "poisoned_memory")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def few_values(vocabulary: int, width: int, dtype: torch.dtype) -> PackedLinear:
    """A head whose rows repeat: every maximum is a tie, in one tile or over several."""
    rows = torch.randint(-2, 3, (40, width))
    return linear.pack(rows[torch.randint(0, 40, (vocabulary,))].to(dtype), impl="triton")


def run(op: str, hidden: Tensor, norm: Tensor, head: PackedLinear) -> Tensor:
    fn = {"logits": logits.logits, "greedy": logits.greedy}[op]
    return fn(hidden, norm, 1e-5, head, impl="triton")


def first_maxima(scores: Tensor) -> Tensor:
    return (scores == scores.amax(dim=1, keepdim=True)).int().argmax(dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1000), (17, 601), (64, 257)])
def test_greedy_is_the_first_argmax_of_logits(
    rows: int, vocabulary: int, dtype: torch.dtype
) -> None:
    head = few_values(vocabulary, 75, dtype)
    hidden, norm = torch.randn(rows, 75), torch.rand(75) + 0.5
    expected = first_maxima(run("logits", hidden, norm, head))
    assert torch.equal(run("greedy", hidden, norm, head), expected)


@pytest.mark.parametrize("rows", [3, 20])
def test_partial_maxima_in_several_steps(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.logits.kernel._PARTS", 64)
    head = few_values(700, 30, torch.float32)
    hidden, norm, key = torch.randn(rows, 30), torch.ones(30), key_of(700, 30, torch.float32)
    with forced(HEAD, key, Config({"BLOCK_N": 32, "BLOCK_K": 32}, 4, 2)):  # 22 tiles
        expected = first_maxima(run("logits", hidden, norm, head))
        assert torch.equal(run("greedy", hidden, norm, head), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["logits", "greedy"])
def test_rows_do_not_depend_on_the_batch(op: str, dtype: torch.dtype) -> None:
    head = few_values(300, 200, dtype)
    hidden, norm = 3 * torch.randn(64, 200), torch.rand(200) + 0.5
    whole = run(op, hidden, norm, head)
    # Of 1, 3, 17 and 40 rows: tiles of 16, 32 and 64.
    for rows in (slice(0, 1), slice(63, 64), slice(9, 12), slice(30, 47), slice(5, 45)):
        assert torch.equal(run(op, hidden[rows], norm, head), whole[rows]), rows


def test_more_rows_than_a_tile_holds() -> None:
    head, norm = few_values(300, 20, torch.float32), torch.ones(20)
    hidden = torch.randn(130, 20)
    tokens = run("greedy", hidden, norm, head)
    parts = [run("greedy", hidden[rows : rows + 1], norm, head) for rows in (0, 63, 64, 128, 129)]
    assert torch.cat(parts).tolist() == [int(tokens[row]) for row in (0, 63, 64, 128, 129)]
    case = Case("B66-H20-V300-bf16", {"b": 66, "h": 20, "v": 300, "dtype": "bf16"})
    for verdict in get_op("logits").check(case, "triton", DEVICE):
        assert verdict.ok, verdict


def test_the_same_bits_every_time_and_counters_left_at_zero() -> None:
    device = torch.device(DEVICE)
    head, norm, hidden = few_values(700, 40, torch.float32), torch.ones(40), torch.randn(3, 40)
    first = run("greedy", hidden, norm, head)
    for _ in range(20):
        workspace("greedy.best", (3, 30), torch.float32, device).fill_(torch.nan)
        workspace("greedy.where", (3, 30), torch.int32, device).fill_(-5)
        assert torch.equal(run("greedy", hidden, norm, head), first)
        assert not counters("greedy.arrived", 1, device).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beside_the_operands_counts(dtype: torch.dtype) -> None:
    wide = torch.full((9, 100), torch.nan)
    wide[2:7, 40:77] = torch.randn(5, 37)
    norm = torch.full((60,), torch.nan)[:37].copy_(torch.rand(37))
    head = few_values(90, 37, dtype)
    scores = run("logits", wide[2:7, 40:77], norm, head)
    assert scores.isfinite().all()
    assert torch.equal(scores, run("logits", wide[2:7, 40:77].contiguous(), norm.clone(), head))
    assert torch.equal(run("greedy", wide[2:7, 40:77], norm, head), first_maxima(scores))


def test_a_head_may_have_a_bias() -> None:
    bias = torch.linspace(-3, -1, 50)
    head = linear.pack(torch.zeros(50, 8), bias, impl="triton")
    scores = run("logits", torch.randn(2, 8), torch.ones(8), head)
    assert torch.equal(scores, bias.expand(2, 50))
    assert run("greedy", torch.randn(2, 8), torch.ones(8), head).tolist() == [49, 49]


@pytest.mark.parametrize("op", ["logits", "greedy"])
def test_no_rows_and_float64(op: str) -> None:
    head = few_values(9, 8, torch.float32)
    shape = (0, 9) if op == "logits" else (0,)
    assert run(op, torch.ones(0, 8), torch.ones(8), head).shape == shape
    with pytest.raises(UnsupportedError, match=f"{op}: hidden is float64"):
        run(op, torch.ones(1, 8, dtype=torch.float64), torch.ones(8), head)
