"""The matrix of operators, cases and architectures: compiled in processes, remembered on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.aot.limits import ARCHS
from kernels.errors import InvalidInputError, LamellaError
from kernels.processes import JOB_SECONDS, Crew, usable_cores

_WORKER = "kernels.aot.worker"
# Kernels that would be interpreted cannot be compiled; code does not depend on the GPUs here.
_ENVIRONMENT = {"TRITON_INTERPRET": None, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Request:
    """Which operators, for which architectures; `own` ("module:function") in place of the one
    operator, with weights packed for `like`. Its kernels go through `kernels.launch.launch`."""

    ops: tuple[str, ...]
    archs: tuple[str, ...]
    own: str | None = None
    like: str = "triton"

    def job(self, do: str, **more: Any) -> dict[str, Any]:
        """As a worker takes it."""
        fields = {"ops": self.ops, "archs": self.archs, "own": self.own, "like": self.like}
        return {"do": do, **fields, **more}


@dataclass(frozen=True)
class Compiled:
    """One variant and what it takes; `error` where it could not be compiled."""

    op: str
    kernel: str
    variant: str  # the first case that launches it
    arch: str
    registers: int | None = None
    spills: int | None = None
    shared_bytes: int | None = None
    error: str | None = None
    cached: bool = False

    @property
    def problems(self) -> list[str]:
        """What is wrong with it, in a few words each."""
        if self.error is not None:
            return [self.error]
        limits, problems = ARCHS[self.arch], []
        if self.spills:
            problems.append(f"spills {self.spills} bytes a thread")
        if (self.registers or 0) > limits.registers:
            problems.append(f"{self.registers} registers, of {limits.registers}")
        if (self.shared_bytes or 0) > limits.shared_bytes:
            problems.append(f"{self.shared_bytes} bytes of shared memory, of {limits.shared_bytes}")
        return problems

    @property
    def ok(self) -> bool:
        """Whether it compiles, spills nothing and fits."""
        return not self.problems


def compile_matrix(
    request: Request,
    processes: int | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
    job_seconds: float = JOB_SECONDS,
) -> list[Compiled]:
    """All variants in the registry's order; `told` hears how many of how many are done.

    Unless told otherwise in as many processes as there are cores, but at least two and at most
    eight; a kernel that takes longer than `job_seconds` has an error. What was compiled before,
    from the same source by the same Triton, comes from the cache. Raises `LamellaError` for an
    architecture that this Triton does not know or an `own` that cannot load.
    """
    count = processes or min(8, max(2, usable_cores()))
    with Crew(_WORKER, count, _ENVIRONMENT, job_seconds=job_seconds) as crew:
        listed = _listed(crew, request)
        keys = list(dict.fromkeys(item["key"] for item in listed if item["key"] is not None))
        results = {key: result for key in keys if (result := _remembered(key))}
        remembered = set(results)
        told(len(results), len(keys))
        jobs = [request.job("compile", key=key) for key in keys if key not in results]
        for job, result in crew.run(jobs):
            results[job["key"]] = result
            if "error" not in result:
                _remember(job["key"], result)
            told(len(results), len(keys))
    return [
        Compiled(
            item["op"],
            item["kernel"],
            item["case"],
            item["arch"],
            cached=item["key"] in remembered,
            **({"error": item["error"]} if item["key"] is None else results[item["key"]]),
        )
        for item in listed
    ]


def print_code(
    request: Request, kernel: str, kind: str, job_seconds: float = JOB_SECONDS
) -> Iterator[tuple[str, str]]:
    """(title, code as `kind`) of the first variant, on each architecture, of the kernel whose name
    contains `kernel`. Raises `InvalidInputError` if there is none."""
    with Crew(_WORKER, 1, _ENVIRONMENT, job_seconds=job_seconds) as crew:
        listed = [item for item in _listed(crew, request) if item["key"] is not None]
        found = [item for item in listed if kernel in item["kernel"]]
        if not found:
            names = ", ".join(sorted({item["kernel"] for item in listed}))
            raise InvalidInputError(f"no kernel is called {kernel!r}; there are {names or 'none'}")
        for arch in dict.fromkeys(item["arch"] for item in found):
            first = next(item for item in found if item["arch"] == arch)
            ((_, result),) = crew.run([request.job("code", key=first["key"], kind=kind)])
            if "error" in result:
                raise LamellaError(f"{first['kernel']} for {arch}: {result['error']}")
            yield f"{first['kernel']} ({first['case']}) for {arch}", result["code"]


def _listed(crew: Crew, request: Request) -> list[dict[str, Any]]:
    ((_, listing),) = crew.run([request.job("list")])
    if "error" in listing:
        raise LamellaError(listing["error"])
    found: list[dict[str, Any]] = listing["found"]
    return found


def _path(key: str) -> Path:
    root = os.environ.get("LAMELLA_CACHE") or Path.home() / ".cache" / "lamella"
    return Path(root) / "aot" / f"{key}.json"


def _remembered(key: str) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads(_path(key).read_text())
    except (OSError, ValueError):
        return None
    return result


def _remember(key: str, result: dict[str, Any]) -> None:
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(result))
    temporary.replace(path)
