"""Operators timed through pytest-benchmark; deselected unless asked for with `-m bench`.

`make bench-operators` stores a baseline for this device, torch and Triton version, and
`make bench-compare` fails where a median is past it by more than the stated bound. A kernel whose
check is red is not timed: its test fails.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from kernels import OPS
from kernels.benchmarking.measure import red_impls
from kernels.case_inputs import Case
from kernels.op import Op
from tests.devices import DEVICE

IMPLS = ("triton",) if DEVICE == "cuda" else ("cpu",)
CASES = [
    pytest.param(op, case, impl, id=f"{op.name}-{case.name}-{impl}")
    for op in OPS.values()
    for case in op.cases
    for impl in IMPLS
    if case.bench and (DEVICE == "cuda" or not case.gpu)
]


@pytest.mark.bench
@pytest.mark.parametrize(("op", "case", "impl"), CASES)
@torch.inference_mode()
def test_operator(op: Op, case: Case, impl: str, benchmark: BenchmarkFixture) -> None:
    assert red_impls(op, case, [impl], DEVICE, impl) == {}
    call = op.bind(op.make_inputs(case, DEVICE, 0), impl)
    benchmark.group = op.name
    benchmark.extra_info["bytes_moved"] = op.bytes_moved(case)
    benchmark.extra_info["flops"] = op.flops(case)
    if DEVICE == "cpu":
        benchmark(call)
        return
    flush = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)

    def cold() -> None:
        flush.zero_()
        torch.cuda.synchronize()

    def run() -> None:
        call()
        torch.cuda.synchronize()

    benchmark.pedantic(run, setup=cold, rounds=50, warmup_rounds=3)
