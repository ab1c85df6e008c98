"""A long prefill's last rows: the same as in the whole call, and red where these are wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import get_op
from kernels.attention.reference import attention
from kernels.benchmarking import measure
from kernels.benchmarking.excerpt import check_last_rows, has_long_prefill, last_rows
from kernels.case_inputs import Case
from tests.devices import DEVICE, IMPLS

OP = get_op("attention")
CASE = Case(
    "long",
    {
        "rows": ((97, 199),),
        "heads": (4, 2, 16),
        "block_size": 5,
        "kv_dtype": "int8",
        "dtype": "bf16",
        "window": None,
        "softcap": None,
        "max_queries": 97,
    },
)
LONG = replace(CASE, stand_in=CASE)


def wrong_at_the_end(*args: Any, **options: Any) -> Tensor:
    out = attention(*args, **options)
    out[-1] *= 1.1
    return out


def test_last_rows_see_what_they_saw() -> None:
    inputs = OP.make_inputs(CASE, DEVICE, 0)
    whole, last = (OP.run(x, "reference")["out"] for x in (inputs, last_rows(inputs, 64)))
    torch.testing.assert_close(last, whole[-64:])


@pytest.mark.parametrize("impl", IMPLS)
def test_right_rows_are_green(impl: str) -> None:
    assert check_last_rows(OP, CASE, impl, DEVICE).ok


def test_a_wrong_row_is_red() -> None:
    verdict = check_last_rows(OP, CASE, "reference", DEVICE, wrong_at_the_end)
    assert not verdict.ok
    assert verdict.output == "out, last 64 rows"


def test_the_long_prefill_is_checked_by_its_end() -> None:
    long = [case for case in OP.cases if case.stand_in is not None]
    assert long
    assert all(has_long_prefill(OP, case, "cuda") for case in long)
    assert not any(has_long_prefill(OP, case, "cuda") for case in OP.cases if case not in long)
    assert not has_long_prefill(OP, long[0], "cpu")


def test_a_red_end_refuses_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure.red_impls(OP, LONG, ["reference"], DEVICE, "reference") == {}
    monkeypatch.setattr(measure, "has_long_prefill", lambda *a: True)
    assert measure.red_impls(OP, LONG, ["reference"], DEVICE, "reference") == {}
    red = check_last_rows(OP, CASE, "reference", DEVICE, wrong_at_the_end)
    monkeypatch.setattr(measure, "check_last_rows", lambda *a: red)
    why = measure.red_impls(OP, LONG, ["reference"], DEVICE, "reference")
    assert "out, last 64 rows is off by" in why["reference"]
