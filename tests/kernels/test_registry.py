"""The registry's data: cases are reproducible, counts are right, every operator is there."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
import torch

from kernels import OPS, get_op
from kernels.case_inputs import Case
from kernels.errors import InvalidInputError
from kernels.layout import KVPool
from kernels.op import Op
from kernels.override import OPERATORS

ALL = pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))


def test_holds_every_operator() -> None:
    assert set(OPS) == set(OPERATORS)
    with pytest.raises(InvalidInputError, match=r"'attend' is unknown.*'attention'"):
        get_op("attend")


@ALL
def test_implementations_take_the_public_arguments_but_impl(op: Op) -> None:
    public = inspect.signature(getattr(import_module(f"kernels.{OPERATORS[op.name]}"), op.name))
    expected = [p.replace(annotation="") for p in public.parameters.values() if p.name != "impl"]
    for module in op.implementations.values():
        found = inspect.signature(getattr(import_module(module), op.name)).parameters.values()
        assert [p.replace(annotation="") for p in found] == expected, module


@ALL
def test_cases(op: Op) -> None:
    names = [case.name for case in op.cases]
    assert len(set(names)) == len(names)
    assert any(case.bench for case in op.cases)
    compiled = [case.name for case in op.aot]
    assert len(set(compiled)) == len(compiled) > 0
    for case in op.cases:
        assert op.flops(case) > 0
        assert op.bytes_moved(case) > 0


@ALL
def test_inputs_are_reproducible_and_draws_differ(op: Op) -> None:
    case = op.cases[0]
    once, again, other = (op.make_inputs(case, "cpu", draw) for draw in (0, 0, 1))
    same = [_equal(once[name], again[name]) for name in once]
    assert all(same)
    assert not all(_equal(once[name], other[name]) for name in once)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, KVPool) and isinstance(b, KVPool):
        return _equal(a.k, b.k) and _equal(a.k_scale, b.k_scale)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    return a == b


def test_counts_of_work() -> None:
    params = {"t": 2, "n": 3, "k": 5, "dtype": "bf16", "bias": False, "residual": False}
    linear = get_op("linear")
    assert linear.flops(Case("", params)) == 2 * 2 * 3 * 5
    assert linear.bytes_moved(Case("", params)) == 2 * (2 * 5 + 3 * 5 + 2 * 3)
    rows = {"rows": ((2, 4), (1, 9)), "heads": (4, 2, 8), "block_size": 16, "kv_dtype": "int8"}
    case = Case("", {**rows, "dtype": "bf16", "window": 5, "softcap": None})
    attention = get_op("attention")
    # Queries at positions 2 and 3 see 3 and 4 tokens; the one at position 8 sees 5 of 9.
    assert attention.flops(case) == 4 * 4 * 8 * (3 + 4 + 5)
    assert attention.bytes_moved(case) == (4 + 5) * 2 * 2 * (8 + 4) + 3 * 4 * 8 * 2 * 2
