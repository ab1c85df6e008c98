"""The end of a long prefill checked, where the reference cannot hold all of it."""

from __future__ import annotations

import torch

from kernels.budget import Verdict, judge
from kernels.case_inputs import Case, Inputs, widen
from kernels.op import Function, Op

_ROWS = 64


def check_last_rows(
    op: Op, case: Case, impl: str, device: str, own: Function | None = None, rows: int = _ROWS
) -> Verdict:
    """The verdict on attention's last `rows` queries of one sequence, `impl` or `own` having run
    all.

    The last queries see every position of the sequence; by themselves they are few enough for the
    reference and for float64.
    """
    inputs = op.make_inputs(case, device, 0)
    last = last_rows(inputs, rows)
    actual = op.run(inputs, impl, own)["out"][-rows:]
    reference = op.run(last, "reference")["out"]
    oracle = op.run(widen(last), "reference")["out"]
    return judge(f"out, last {rows} rows", actual, reference, oracle, op.budget)


def last_rows(inputs: Inputs, rows: int) -> Inputs:
    """The call of the last `rows` queries alone; `inputs` hold a single sequence."""
    start = inputs["query_start"].new_tensor([0, rows])
    return {**inputs, "q": inputs["q"][-rows:], "query_start": start, "max_queries": rows}


def has_long_prefill(op: Op, case: Case, device: str) -> bool:
    """Whether a case is checked by its end besides its stand-in."""
    single = op.name == "attention" and len(case.params["rows"]) == 1
    return case.stand_in is not None and single and torch.device(device).type == "cuda"
