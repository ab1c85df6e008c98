"""The same benchmarks on a git ref and on the work tree, taking turns."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from kernels.benchmarking.environment import git_environment
from kernels.benchmarking.run import BenchRequest, ask, rows_of, timing_process
from kernels.errors import InvalidInputError, LamellaError
from kernels.own import is_own
from kernels.processes import Crew, Job, child_environment

# Less than this is never called a difference, however small the spread.
_LEAST = 0.02
_REHEARSAL_SECONDS = 0.001
_PREFIX = "lamella-base-"
# What a commit can time, asked of its own registry.
_LISTING = """
import json, sys
from kernels.override import OPERATORS
from kernels.registry import get_op
ops = [get_op(name) for name in sys.argv[1:] if name in OPERATORS]
print(json.dumps({op.name: ([c.name for c in op.cases], list(op.implementations)) for op in ops}))
"""


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
    new: bool = False  # the base does not have it: nothing to compare with

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the base."""
        if self.base_us is None or self.here_us is None:
            return None
        return self.base_us / self.here_us

    @property
    def verdict(self) -> str:
        """ "faster" or "slower" where the difference is beyond the spread of both, else "same";
        "new" without a base, "refused" without figures."""
        if self.new:
            return "new"
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

    Both sides run in processes of their own and take turns on each case, `rounds` times, after a
    check of each side that is not timed; what is red at either is refused. Raises
    `InvalidInputError` outside a git repository or for an unknown ref, `LamellaError` for a ref
    without these benchmarks, or whose packages cannot be imported.
    """
    folder = folder or Path(__file__).parents[2]
    rows: list[Compared] = []
    jobs = request.jobs()
    with work_tree(folder, base) as (root, commit):
        if not (root / "kernels" / "benchmarking" / "worker.py").is_file():
            raise LamellaError(f"{base} ({commit}) has no benchmarks yet; expected a later commit")
        known = _known(root, request.ops, f"{base} ({commit})")
        seconds = request.timeout
        with timing_process(root, seconds) as there, timing_process(job_seconds=seconds) as here:
            environment = ask(here, request.job("environment"))
            for index, job in enumerate(jobs):
                cases, impls = known.get(job["op"], ((), ()))
                old = [impl for impl in job["impls"] if is_own(impl) or impl in impls]
                old = old if job["case"] in cases else []
                new = [impl for impl in job["impls"] if impl not in old]
                rows += (Compared(job["op"], job["case"], impl, new=True) for impl in new)
                if old:
                    rows += _one_case({**job, "impls": old}, there, here, rounds)
                told(index + 1, len(jobs))
    return {
        "base": {"ref": base, "commit": commit},
        "environment": environment["environment"],
        "rounds": rounds,
        "results": rows,
    }


def _one_case(job: Job, there: Crew, here: Crew, rounds: int) -> Iterator[Compared]:
    impls = job["impls"]
    times: dict[str, tuple[list[float], list[float]]] = {impl: ([], []) for impl in impls}
    why: dict[str, str] = {}
    # Before the first round: both sides checked, compiled and warm.
    rehearsal = {"copy": 1.0, "peers": False, "checked": True, "seconds": _REHEARSAL_SECONDS}
    for number in range(-1, rounds):
        turn = {**job, "copy": 1.0, "peers": False, "checked": False}
        turn |= rehearsal if number < 0 else {}
        # Whoever comes first differs from round to round: a machine that warms up favours nobody.
        for side in ((0, 1), (1, 0))[number % 2]:
            where = ("at the base", "here")[side]
            turn["impls"] = [impl for impl in impls if impl not in why]
            for row in rows_of((there, here)[side], turn) if turn["impls"] else ():
                if "refused" in row:
                    why[row["impl"]] = f"{where}: {row['refused']}"
                elif number >= 0:
                    times[row["impl"]][side].append(row["median_us"])
    for impl, (base, now) in times.items():
        if impl in why:
            yield Compared(job["op"], job["case"], impl, refused=why[impl])
        else:
            spread = max(_spread(base), _spread(now))
            yield Compared(job["op"], job["case"], impl, median(base), median(now), spread)


def _known(root: Path, ops: Sequence[str], name: str) -> dict[str, tuple[list[str], list[str]]]:
    """Operator -> its cases and implementations in the work tree at `root`."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LISTING, *ops],
        env=child_environment({"TRITON_INTERPRET": None}, root),
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise LamellaError(f"{name} cannot be imported: {last}")
    known: dict[str, tuple[list[str], list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return known


def _spread(times: Sequence[float]) -> float:
    return (max(times) - min(times)) / 2 / median(times)


@contextmanager
def work_tree(folder: Path, ref: str) -> Iterator[tuple[Path, str]]:
    """A temporary work tree of `ref` and its short commit; removed whatever happens within.

    Those that killed processes left behind are removed first.
    """
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
    _remove_stale(folder)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as place:
        root = Path(place) / "base"
        try:
            _git(
                folder,
                *("worktree", "add", "--detach", "--quiet", str(root), commit),
                error=f"no work tree of {ref!r} could be made",
            )
            yield root, commit
        finally:
            _remove(folder, root)


def _remove_stale(folder: Path) -> None:
    listing = _git(folder, "worktree", "list", "--porcelain", error="no work trees can be listed")
    for line in listing.splitlines():
        root = Path(line.removeprefix("worktree "))
        made = re.match(rf"{_PREFIX}(\d+)-", root.parent.name)
        if line.startswith("worktree ") and made and not _alive(int(made[1])):
            _remove(folder, root)
            shutil.rmtree(root.parent, ignore_errors=True)


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True  # there the question would be the end of it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True


def _remove(folder: Path, root: Path) -> None:
    subprocess.run(
        ["git", "-C", str(folder), "worktree", "remove", "--force", str(root)],
        capture_output=True,
        check=False,
        env=git_environment(),
    )


def _git(folder: Path, *arguments: str, error: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=git_environment(),
        )
    except OSError as problem:
        raise InvalidInputError(f"git cannot be run: {problem}") from problem
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise InvalidInputError(f"{error}: {said}" if said else error)
    return done.stdout.strip()
