"""The same benchmarks on a git ref and on the work tree, taking turns."""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from kernels.benchmarking.run import BenchRequest, ask, timing_process
from kernels.errors import InvalidInputError, LamellaError
from kernels.processes import Crew, Job

# Less than this is never called a difference, however small the spread.
_LEAST = 0.02


@dataclass(frozen=True)
class Compared:
    """One implementation on one case: medians over the rounds in microseconds, `spread` the larger
    of both sides' (largest - smallest) / 2 over the median; or why there is no figure."""

    op: str
    case: str
    impl: str
    base_us: float | None = None
    here_us: float | None = None
    spread: float | None = None
    refused: str | None = None

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the base."""
        if self.base_us is None or self.here_us is None:
            return None
        return self.base_us / self.here_us

    @property
    def verdict(self) -> str:
        """ "faster" or "slower" where the difference is beyond the spread of both, else "same"."""
        if self.speedup is None or self.spread is None:
            return "refused"
        bound = max(self.spread, _LEAST)
        if abs(math.log(self.speedup)) <= math.log1p(bound):
            return "same"
        return "faster" if self.speedup > 1 else "slower"


def compare(
    request: BenchRequest,
    base: str,
    rounds: int = 5,
    told: Callable[[int, int], None] = lambda done, total: None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """`{"base", "environment", "rounds", "results"}`, a row of results for each case and
    implementation.

    Both sides run in processes of their own and take turns on each case, `rounds` times. The work
    tree's kernels are checked first; a red one is refused. Raises `InvalidInputError` outside a git
    repository or for an unknown ref, `LamellaError` for a ref without these benchmarks.
    """
    folder = folder or Path(__file__).parents[2]
    rows: list[Compared] = []
    jobs = request.jobs()
    with work_tree(folder, base) as (root, commit):
        if not (root / "kernels" / "benchmarking" / "worker.py").is_file():
            raise LamellaError(f"{base} ({commit}) has no benchmarks yet; expected a later commit")
        with timing_process(root) as there, timing_process() as here:
            environment = ask(here, request.job("environment"))
            for index, job in enumerate(jobs):
                rows += _one_case(request, job, there, here, rounds)
                told(index + 1, len(jobs))
    return {
        "base": {"ref": base, "commit": commit},
        "environment": environment["environment"],
        "rounds": rounds,
        "results": rows,
    }


def _one_case(
    request: BenchRequest, job: Job, there: Crew, here: Crew, rounds: int
) -> Iterator[Compared]:
    times: dict[str, tuple[list[float], list[float]]] = {impl: ([], []) for impl in job["impls"]}
    why: dict[str, str] = {}
    for number in range(rounds):
        # Whoever comes first differs from round to round: a machine that warms up favours nobody.
        for side in ((0, 1), (1, 0))[number % 2]:
            turn = {**job, "copy": 1.0, "peers": False, "checked": side == 1 and number == 0}
            ((_, result),) = (there, here)[side].run([turn])
            where = ("at the base", "here")[side]
            for impl in job["impls"] if "error" in result else ():
                why.setdefault(impl, f"{where}: {result['error']}")
            for row in result.get("results", ()):
                if "refused" in row:
                    why.setdefault(row["impl"], f"{where}: {row['refused']}")
                else:
                    times[row["impl"]][side].append(row["median_us"])
        if len(why) == len(times):
            break
    for impl, (base, now) in times.items():
        if impl in why:
            yield Compared(job["op"], job["case"], impl, refused=why[impl])
        else:
            spread = max(_spread(base), _spread(now))
            yield Compared(job["op"], job["case"], impl, median(base), median(now), spread)


def _spread(times: Sequence[float]) -> float:
    return (max(times) - min(times)) / 2 / median(times)


@contextmanager
def work_tree(folder: Path, ref: str) -> Iterator[tuple[Path, str]]:
    """A temporary work tree of `ref` and its short commit; removed whatever happens within."""
    _git(folder, "rev-parse", "--git-dir", error=f"{folder} is not a git repository")
    commit = _git(
        folder,
        *(
            "rev-parse",
            "--verify",
            "--quiet",
            "--short=10",
            "--end-of-options",
            f"{ref}^{{commit}}",
        ),
        error=f"{ref!r} is no commit, branch or tag of {folder}",
    )
    with tempfile.TemporaryDirectory(prefix="lamella-base-") as place:
        root = Path(place) / "base"
        try:
            _git(
                folder,
                *("worktree", "add", "--detach", "--quiet", str(root), commit),
                error=f"no work tree of {ref!r} could be made",
            )
            yield root, commit
        finally:
            subprocess.run(
                ["git", "-C", str(folder), "worktree", "remove", "--force", str(root)],
                capture_output=True,
                check=False,
            )


def _git(folder: Path, *arguments: str, error: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError as problem:
        raise InvalidInputError(f"git cannot be run: {problem}") from problem
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise InvalidInputError(f"{error}: {said}" if said else error)
    return done.stdout.strip()
