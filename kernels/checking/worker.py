"""The process in which cases are checked: `python -m kernels.checking.worker`."""

from __future__ import annotations

from typing import Any

import torch

from kernels.budget import Verdict
from kernels.op import Yardstick
from kernels.own import is_own, load_own
from kernels.processes import Job, Result, in_words, serve
from kernels.registry import get_op


def check(job: Job) -> Result:
    """Measure one job; see `kernels.checking.matrix.CheckJob`."""
    op = get_op(job["op"])
    case = next(case for case in op.cases if case.name == job["case"])
    outputs: list[dict[str, Any]] = []
    with torch.inference_mode():
        yardstick = Yardstick(op, case, job["device"])
        for impl in job["impls"]:
            try:
                own = load_own(impl) if is_own(impl) else None
                verdicts = yardstick.measure(impl if own is None else job["like"], own)
            except (Exception, SystemExit) as error:  # whatever a kernel under work may raise
                outputs.append({"impl": impl, "message": in_words(error)})
            else:
                outputs += [{"impl": impl, **_document(verdict)} for verdict in verdicts]
    return {"outputs": outputs}


def _document(verdict: Verdict) -> dict[str, Any]:
    return {
        "output": verdict.output,
        "error": verdict.max_error,
        "budget": verdict.max_budget,
        "mean_error": verdict.mean_error,
        "mean_budget": verdict.mean_budget,
        "ok": verdict.ok,
    }


if __name__ == "__main__":
    serve(check)
