"""Every implementation stays within its error budget on every case of the registry."""

from __future__ import annotations

from random import Random

import pytest
import torch

from kernels import OPS, get_op
from kernels.budget import Budget, judge
from kernels.case_inputs import Case
from kernels.op import Op
from tests.devices import DEVICE, IMPLS

TESTED = tuple(impl for impl in IMPLS if impl != "reference")
MEASURED = [
    pytest.param(op, case, impl, id=f"{op.name}-{case.name}-{impl}")
    for op in OPS.values()
    for case in op.cases
    for impl in op.implementations
    if impl in TESTED and not case.bench
]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("op", "case", "impl"), MEASURED)
def test_within_budget(op: Op, case: Case, impl: str) -> None:
    for verdict in op.check(case, impl, DEVICE):
        assert verdict.ok, verdict


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_reference_gives_no_nan(op: Op) -> None:
    for case in op.cases:
        if not case.bench:
            for verdict in op.check(case, "reference", DEVICE):
                assert verdict.ok, (case.name, verdict)


HEAD_DIMS = (8, 16, 64, 80, 96, 128, 256)
GROUPS = (1, 4, 7, 8)
BLOCK_SIZES = (1, 5, 8, 16)
WINDOWS = (None, 3, 13, 37, 533)
KV_DTYPES = ("fp32", "bf16", "fp16", "int8")


GRID = [
    (index, impl)
    for impl in TESTED
    for index in range(20 if impl == "triton" and DEVICE == "cpu" else 40)
]


@pytest.mark.parametrize(("index", "impl"), GRID)
def test_attention_grid(index: int, impl: str) -> None:
    random = Random(index)  # so that no two options move together
    group, kv_heads = random.choice(GROUPS), random.choice((1, 2))
    lengths = (0, 1, 3, 54, 97, 199, 1999 if index % 7 == 0 else 200)
    queries = [(1, 1, 1, 1, 1, 1, 1), (0, 1, 2, 54, 5, 1, 3), (2, 1, 3, 1, 1, 1, 64)][index % 3]
    params = {
        "rows": tuple(zip(queries, lengths, strict=True)),
        "heads": (group * kv_heads, kv_heads, HEAD_DIMS[index % 7]),
        "block_size": random.choice(BLOCK_SIZES),
        "kv_dtype": random.choice(KV_DTYPES),
        "dtype": random.choice(("fp32", "bf16")),
        "window": random.choice(WINDOWS),
        "softcap": 10.0 if index % 6 == 5 else None,
    }
    for verdict in get_op("attention").check(Case(f"grid {index}", params), impl, DEVICE):
        assert verdict.ok, (params, verdict)


def test_judge_can_fail() -> None:
    oracle = torch.linspace(1, 2, 50, dtype=torch.float64)
    reference = oracle.float() + 1e-4
    judged = {
        name: judge("y", oracle.float() + error, reference, oracle, Budget()).ok
        for name, error in {"same": 1e-4, "mean": 1.6e-4, "nan": float("nan")}.items()
    }
    assert judged == {"same": True, "mean": False, "nan": False}
    assert not judge("y", oracle.bfloat16(), reference, oracle, Budget()).ok
    one_off = oracle.float() + torch.nn.functional.one_hot(torch.tensor(7), 50) * 3e-4
    assert not judge("y", one_off, reference, oracle, Budget()).ok
    assert not judge("y", oracle.float()[:-1], reference, oracle, Budget()).ok
    tokens = torch.tensor([1, 2])
    assert judge("y", tokens, tokens, tokens, Budget()).ok
    assert not judge("y", tokens, tokens, tokens + 1, Budget()).ok
