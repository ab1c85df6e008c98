"""What is to be checked, job by job, and the processes that do it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kernels.own import is_own
from kernels.processes import JOB_SECONDS, Crew, Job, Result, usable_cores
from kernels.registry import get_op


@dataclass(frozen=True)
class CheckJob:
    """One case of one operator; its implementations share the reference's results."""

    op: str
    case: str
    impls: tuple[str, ...]  # of the operator, or "module:function"
    like: str  # whose packed weights a "module:function" gets
    device: str


@dataclass(frozen=True)
class Checked:
    """One output's errors beside their budgets; `message` says why there are none."""

    op: str
    case: str
    impl: str
    output: str | None = None
    error: float | None = None
    budget: float | None = None
    mean_error: float | None = None
    mean_budget: float | None = None
    ok: bool = False
    message: str | None = None


def check_jobs(
    ops: Sequence[str],
    impls: Sequence[str],
    *,
    like: str = "reference",
    device: str = "cpu",
    bench_cases: bool = False,
    only: str = "",
) -> list[CheckJob]:
    """A job for every case of `ops` whose name contains `only`, with those of `impls` there are.

    No `impls` means all that the operator has and `device` takes. Of the large cases that `bench`
    times there are jobs only with `bench_cases`, on a CPU without those that need a GPU.
    """
    jobs = []
    for name in ops:
        op = get_op(name)
        present = [i for i in op.implementations if device == "cpu" or i != "cpu"]
        mine = tuple(i for i in impls or present if is_own(i) or i in present)
        for case in op.cases if mine else ():
            wanted = (not case.bench or bench_cases) and (device != "cpu" or not case.gpu)
            if wanted and only in case.name:
                jobs.append(CheckJob(name, case.name, mine, like, device))
    return jobs


def run_checks(
    jobs: Sequence[CheckJob], processes: int | None = None, job_seconds: float = JOB_SECONDS
) -> Iterator[list[Checked]]:
    """The outputs of each job, in the order in which jobs end.

    On a CPU kernels run in Triton's interpreter, on a GPU compiled; unless told otherwise, in as
    many processes as there are cores, but at most four. What takes longer than `job_seconds`,
    or ends its process, is red by itself: the job's other implementations are measured again.
    """
    on_cpu = all(job.device == "cpu" for job in jobs)
    count = processes or min(4, usable_cores())
    environment = {"TRITON_INTERPRET": "1" if on_cpu else None}
    if on_cpu:
        environment["OMP_NUM_THREADS"] = "1"
    worker = "kernels.checking.worker"
    with Crew(worker, count, environment, job_seconds=job_seconds) as crew:
        alone: list[dict[str, Any]] = []
        for job, result in crew.run([asdict(job) for job in jobs]):
            if "error" in result and len(job["impls"]) > 1:
                alone += [{**job, "impls": [impl]} for impl in job["impls"]]
            else:
                yield _checked(job, result)
        left = Counter((job["op"], job["case"]) for job in alone)
        found: dict[tuple[str, str], list[Checked]] = {case: [] for case in left}
        for job, result in crew.run(alone):
            case = (job["op"], job["case"])
            found[case] += _checked(job, result)
            left[case] -= 1
            if not left[case]:
                yield found[case]


def _checked(job: Job, result: Result) -> list[Checked]:
    outputs = result.get("outputs") or [
        {"impl": impl, "message": result["error"]} for impl in job["impls"]
    ]
    return [Checked(job["op"], job["case"], **output) for output in outputs]
