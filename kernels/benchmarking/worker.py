"""The process that times: `python -m kernels.benchmarking.worker`."""

from __future__ import annotations

from dataclasses import asdict

from kernels.benchmarking.environment import environment
from kernels.benchmarking.measure import measure
from kernels.benchmarking.timing import copy_bandwidth, product_rate
from kernels.benchmarking.tune import tune
from kernels.processes import Job, Result, serve
from kernels.registry import get_op


def handle(job: Job) -> Result:
    """Look around, time one case, or tune an operator."""
    device = job["device"]
    if job["do"] == "environment":
        return {
            "environment": environment(device),
            "copy_gb_per_s": copy_bandwidth(device) / 1e9,
            "product_tflop_per_s": product_rate(device) / 1e12,
        }
    op = get_op(job["op"])
    if job["do"] == "tune":
        cases = [case for case in op.cases if case.name in job["cases"]]
        return {"tuned": [asdict(entry) for entry in tune(op, cases, device, job["budget"])]}
    case = next(case for case in op.cases if case.name == job["case"])
    found = measure(
        op,
        case,
        job["impls"],
        device,
        like=job["like"],
        seconds=job["seconds"],
        with_peers=job["peers"],
        checked=job["checked"],
    )
    return {"results": [item.json(op, case, job["copy"]) for item in found]}


if __name__ == "__main__":
    serve(handle)
