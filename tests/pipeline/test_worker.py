"""Stage workers: order, threads, errors and their end."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest
import torch

from kernels.errors import InvalidInputError, LamellaError
from pipeline.candidates import Arrangement
from pipeline.crew import Crew
from pipeline.threads import stage_threads, usable_cores, worker_of_stage
from pipeline.worker import StageWorker

TURNS, TOGETHER = Arrangement.TURNS, Arrangement.TOGETHER


@pytest.fixture
def worker():
    worker = StageWorker("worker-under-test")
    yield worker
    assert worker.close()


def test_work_runs_in_order_in_one_thread(worker: StageWorker) -> None:
    seen: list[tuple[int, str]] = []
    tickets = [
        worker.submit(lambda number=number: seen.append((number, threading.current_thread().name)))
        for number in range(50)
    ]
    for ticket in tickets:
        ticket.result()
    assert seen == [(number, "worker-under-test") for number in range(50)]


def test_results_and_errors_come_back(worker: StageWorker) -> None:
    assert worker.submit(lambda: 42).result() == 42
    ticket = worker.submit(lambda: 1 / 0)
    ticket.wait()
    assert isinstance(ticket.error, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        ticket.result()
    assert worker.submit(lambda: "goes on").result() == "goes on"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_torch_runs_in_inference_mode_with_the_asked_threads(count: int) -> None:
    mine = torch.get_num_threads()
    worker = StageWorker("worker-under-test", count)
    try:
        torch.set_num_threads(mine)  # what others set later does not matter
        assert worker.submit(torch.is_inference_mode_enabled).result()
        assert worker.submit(torch.get_num_threads).result() == count
        assert torch.get_num_threads() == mine
    finally:
        worker.close()
        torch.set_num_threads(mine)


def test_close_finishes_what_is_queued_and_refuses_more(worker: StageWorker) -> None:
    ticket = worker.submit(lambda: time.sleep(0.05))
    last = worker.submit(lambda: "done")
    assert worker.close()
    assert (ticket.error, last.result(), worker.alive) == (None, "done", False)
    with pytest.raises(LamellaError, match="worker 'worker-under-test' is closed"):
        worker.submit(lambda: None)
    assert worker.close()


def test_close_does_not_hang_on_work_that_does_not_end(worker: StageWorker) -> None:
    release = threading.Event()
    worker.submit(release.wait)
    start = time.perf_counter()
    assert not worker.close(timeout=0.05)
    assert time.perf_counter() - start < 1
    release.set()


def test_close_from_within_does_not_wait_for_itself(worker: StageWorker) -> None:
    assert worker.submit(worker.close).result() is False


def test_results_are_not_kept_until_the_next_work(worker: StageWorker) -> None:
    class Result:
        pass

    ticket = worker.submit(Result)
    kept = weakref.ref(ticket.result())
    del ticket
    deadline = time.monotonic() + 5
    while kept() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.001)
    assert kept() is None


def test_default_threads_are_all_in_turn_or_shared() -> None:
    cores = usable_cores()
    assert stage_threads(TURNS, 3) == [cores] * 3
    assert stage_threads(TOGETHER, 2) == [max(1, cores // 2)] * 2
    assert stage_threads(TOGETHER, 100) == [1] * 100
    assert stage_threads(TURNS, 2, 3) == [3, 3]
    assert stage_threads(TOGETHER, 2, [1, 4]) == [1, 4]
    assert stage_threads(TURNS, 2, np.int64(3)) == [3, 3]
    assert stage_threads(TOGETHER, 2, np.array([1, 4])) == [1, 4]


@pytest.mark.parametrize(
    ("threads", "message"),
    [
        (0, "threads of stage 0 is 0; expected 1 or more"),
        ([1, -2], "threads of stage 1 is -2"),
        ([1, True], "threads of stage 1 is True"),
        ([1, 1.5], "threads of stage 1 is 1.5"),
        (1.5, "threads of stage 0 is 1.5"),
        (True, "threads of stage 0 is True"),
        ([1], "threads has 1 numbers for 2 stages"),
    ],
)
def test_wrong_threads_are_refused(threads: int | list[int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        stage_threads(TURNS, 2, threads)


def test_usable_cores_respect_openmps_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8), raising=False)
    for text, cores in [("", 8), ("3", 3), ("4,2", 4), ("99", 8), ("0", 8), ("many", 8)]:
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert usable_cores() == cores
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert usable_cores() == 8


def test_stages_share_a_worker_where_they_run_in_turn_with_equal_threads() -> None:
    assert worker_of_stage(TOGETHER, [2, 2, 2]) == [0, 1, 2]
    assert worker_of_stage(TURNS, [2, 2, 2]) == [0, 0, 0]
    assert worker_of_stage(TURNS, [2, 1, 2]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrangement", "threads", "names"),
    [
        (TURNS, [3, 3, 3], {"lamella-stages"}),
        (TURNS, [1, 3, 2], {f"lamella-stage-{stage}" for stage in range(3)}),
        (TOGETHER, [3, 3, 3], {f"lamella-stage-{stage}" for stage in range(3)}),
        (TURNS, [3], {"lamella-stage-0"}),
    ],
)
def test_a_crew_serves_every_stage_with_its_threads(
    arrangement: Arrangement, threads: list[int], names: set[str]
) -> None:
    mine = torch.get_num_threads()
    crew = Crew({arrangement: threads})
    try:
        stages = range(len(threads))
        assert [crew.submit(stage, torch.get_num_threads).result() for stage in stages] == threads
        assert {crew.worker(stage).name for stage in stages} == names
    finally:
        assert crew.close() == []
    assert torch.get_num_threads() == mine
    other: list[int] = []  # a thread that meets torch later gets the caller's count too
    thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert other == [mine]
