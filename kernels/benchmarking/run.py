"""The benchmarks of some operators, in a process of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.errors import LamellaError
from kernels.own import is_own
from kernels.processes import JOB_SECONDS, Crew, Job, Result
from kernels.registry import get_op

_WORKER = "kernels.benchmarking.worker"


@dataclass(frozen=True)
class BenchRequest:
    """What to time: cases of `ops` whose name contains `only`; `impls` empty for the device's own
    ("cpu" and "reference" on a CPU, "triton" on a GPU); `seconds` for each case and implementation;
    what takes longer than `timeout` seconds is refused.
    """

    ops: tuple[str, ...]
    device: str
    impls: tuple[str, ...] = ()
    like: str = "reference"
    only: str = ""
    seconds: float = 0.3
    peers: bool = True
    checked: bool = True
    timeout: float = JOB_SECONDS

    def jobs(self) -> list[Job]:
        """A job for each case that the device is timed on."""
        jobs = []
        for name in self.ops:
            op = get_op(name)
            usual = ("triton",) if self.device == "cuda" else ("cpu", "reference")
            mine = [
                i
                for i in self.impls or usual
                if is_own(i) or (i in op.implementations and _takes(i, self.device))
            ]
            for case in op.cases:
                wanted = case.bench and (self.device == "cuda" or not case.gpu)
                if mine and wanted and self.only in case.name:
                    jobs.append(self.job("case", op=name, case=case.name, impls=mine))
        return jobs

    def job(self, do: str, **more: Any) -> Job:
        """As a worker takes it."""
        fields = {"device": self.device, "like": self.like, "seconds": self.seconds}
        return {"do": do, **fields, "peers": self.peers, "checked": self.checked, **more}


def _takes(impl: str, device: str) -> bool:
    """On a CPU Triton kernels would be interpreted: no time to measure."""
    return impl == "reference" or impl == ("triton" if device == "cuda" else "cpu")


def timing_process(root: Path | None = None, job_seconds: float = JOB_SECONDS) -> Crew:
    """A process that times, with the packages in `root` (default: these), never interpreting."""
    return Crew(_WORKER, 1, {"TRITON_INTERPRET": None}, root, job_seconds)


def rows_of(crew: Crew, job: Job) -> list[dict[str, Any]]:
    """What becomes of each implementation in a job that times a case, and of the peers.

    One that ends the process, or takes too long, is refused by itself: the others go again.
    """
    ((_, result),) = crew.run([job])
    if "error" not in result:
        rows: list[dict[str, Any]] = result["results"]
        return rows
    impls = job["impls"]
    if len(impls) + job["peers"] > 1:
        alone = [{**job, "impls": [impl], "peers": False} for impl in impls]
        alone += [{**job, "impls": []}] if job["peers"] else []
        return [row for single in alone for row in rows_of(crew, single)]
    shared = {"op": job["op"], "case": job["case"], "refused": result["error"]}
    return [{**shared, "impl": impl, "peer": False} for impl in impls] or [
        {**shared, "impl": "peers", "peer": True}
    ]


def ask(crew: Crew, job: Job) -> Result:
    """The result of one job; raises `LamellaError` if there is none."""
    ((_, result),) = crew.run([job])
    if "error" in result:
        raise LamellaError(result["error"])
    return result


def bench(
    request: BenchRequest,
    jobs: Sequence[Job],
    told: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> dict[str, Any]:
    """`{"environment", "copy_gb_per_s", "product_tflop_per_s", "results", "refused"}`.

    `told` hears the rows of each case as it ends. A row of `refused` says why: a red check, or what
    was raised; a peer that does not take a case's inputs is there too.
    """
    with timing_process(job_seconds=request.timeout) as crew:
        report = ask(crew, request.job("environment"))
        rows: list[dict[str, Any]] = []
        for job in jobs:
            job = {**job, "copy": report["copy_gb_per_s"] * 1e9}
            found = rows_of(crew, job)
            rows += found
            told(found)
    return {
        **report,
        "results": [row for row in rows if "refused" not in row],
        "refused": [row for row in rows if "refused" in row],
    }


def tune(
    request: BenchRequest,
    budget_s: float,
    told: Callable[[str], None] = lambda op: None,
) -> list[dict[str, Any]]:
    """Sweep launch configurations of all operators on the GPU, within about `budget_s` seconds in
    all; what is kept for this machine is what came out best, a row for each tunable and key."""
    jobs = [job for job in request.jobs() if "triton" in job["impls"]]
    cases = {op: [j["case"] for j in jobs if j["op"] == op] for op in request.ops}
    cases = {op: names for op, names in cases.items() if names}
    rows: list[dict[str, Any]] = []
    share = budget_s / max(len(cases), 1)
    with timing_process(job_seconds=request.timeout + share) as crew:
        for op, names in cases.items():
            job = request.job("tune", op=op, cases=names, budget=share)
            ((_, result),) = crew.run([job])
            rows += result.get("tuned") or [{"op": op, "error": result.get("error", "no tunable")}]
            told(op)
    return rows
