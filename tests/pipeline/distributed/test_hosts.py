"""Ranks on two hosts: the same tokens; and what is lost is noticed by all, soon, by its number."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.pipeline.distributed.launching import Ranks
from tests.pipeline.distributed.namespaces import Host, two_hosts
from tests.pipeline.distributed.test_ranks import PROMPTS, case, expected

SOON = 2.0
"""Seconds until all survivors have ended; without load it is 0.8, or 0.1 after SIGKILL."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as two:
        yield two


def test_two_hosts_compute_what_one_process_does(hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    one = case(load={"mode": "continuous"})
    commands = [first.command, second.command]
    with Ranks([one], address="lamella-first", hosts=commands) as ranks:
        assert ranks.results() == [expected(one, 2)]


# Last, the link: it stays down.
@pytest.mark.parametrize("what", ["kill 2", "stop 2", "kill 0", "unplug"])
def test_all_survivors_say_who_is_lost(what: str, hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    load = {"threads": 1, "mode": "continuous"}
    cases = [{"do": "until_lost", "prompts": PROMPTS, "load": load}]
    where = [first.command, first.command, second.command]
    with Ranks(cases, 3, timeout="0.7", address=first.address, hosts=where) as ranks:
        ranks.wait_until_running()
        time.sleep(0.3)  # well into it
        start = time.monotonic()
        if what == "unplug":
            second.unplug()
            survivors = {0: "rank 2", 1: "rank 2", 2: "rank [01]"}
        else:
            victim = int(what[-1])
            number = signal.SIGKILL if "kill" in what else signal.SIGSTOP
            ranks.processes[victim].send_signal(number)
            survivors = {rank: f"rank {victim}" for rank in range(3) if rank != victim}
        ends = dict(zip(survivors, ranks.ends(list(survivors), 20), strict=True))
        took = time.monotonic() - start
    reason = "is gone: it closed its connection" if "kill" in what else "no sign of life for "
    for rank, lost in survivors.items():
        code, out, err = ends[rank]
        assert code == 1
        # The driver's caller gets the error, from every call; the others end with it.
        messages = json.loads(out)[0] if rank == 0 else [err]
        assert len(messages) == (4 if rank == 0 else 1)
        for message in messages:
            assert reason in message
            assert re.search(rf"{lost} \(host .*\) ", message)
    assert took < SOON
