"""How many intra-op threads each stage gets, and which worker thread serves it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from kernels.errors import InvalidInputError
from pipeline.candidates import Arrangement
from pipeline.modes import LlamaPipelineMode
from pipeline.validation import as_int

SHARE_WORKER_IN_TURNS = True


def arrangements(mode: LlamaPipelineMode, stage_count: int) -> list[Arrangement]:
    """The arrangements that a mode needs, the one that it begins with first."""
    if mode is LlamaPipelineMode.BATCH or stage_count == 1:
        return [Arrangement.TURNS]
    if mode is LlamaPipelineMode.AUTO:
        return [Arrangement.TURNS, Arrangement.TOGETHER]
    return [Arrangement.TOGETHER]


def machine_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS and Windows have no affinity to ask for


def usable_cores() -> int:
    """Cores that this process may use, and no more than `OMP_NUM_THREADS` where that is set."""
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    cores = machine_cores()
    return min(cores, int(limit)) if limit.isdecimal() and int(limit) > 0 else cores


def stage_threads(
    arrangement: Arrangement, stage_count: int, threads: int | Sequence[int] | None = None
) -> list[int]:
    """Intra-op threads of each stage.

    By default every stage takes all usable cores where the stages run in turn, and they share them
    where they run at once. `threads` overrides, one number for all or one per stage. Raises
    `InvalidInputError` for a number below 1 or a wrong count.
    """
    if threads is None:
        cores = usable_cores()
        share = cores if arrangement is Arrangement.TURNS else max(1, cores // stage_count)
        return [share] * stage_count
    given = list(threads) if isinstance(threads, Iterable) else [threads] * stage_count
    counts = [as_int(count, f"threads of stage {stage}") for stage, count in enumerate(given)]
    if len(counts) != stage_count:
        raise InvalidInputError(
            f"threads has {len(counts)} numbers for {stage_count} stages; expected one per stage"
        )
    for stage, count in enumerate(counts):
        if count < 1:
            raise InvalidInputError(f"threads of stage {stage} is {count!r}; expected 1 or more")
    return counts


def worker_of_stage(arrangement: Arrangement, threads: Sequence[int]) -> list[int]:
    """Index of the worker that serves each stage, given the stages' intra-op threads.

    One each where stages work at the same time, or differ in threads; one for all where they run
    in turn: a worker each would only add wake-ups, and OpenMP pools whose idle threads disturb the
    stage at work.
    """
    in_turn = arrangement is Arrangement.TURNS and SHARE_WORKER_IN_TURNS
    if in_turn and len(set(threads)) == 1:
        return [0] * len(threads)
    return list(range(len(threads)))
