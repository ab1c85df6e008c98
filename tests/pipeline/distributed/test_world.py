"""What torchrun's environment says, and which address others reach this machine by."""

from __future__ import annotations

import pytest

from kernels.errors import InvalidInputError, UnsupportedError
from pipeline import LlamaPipeline
from pipeline.distributed import serve
from pipeline.distributed.world import World, interface_address, route_to
from pipeline.threads import machine_cores

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_MAX_RESTARTS": "3",
}


def test_the_world_of_torchrun() -> None:
    world = World.of_environment(TORCHRUN)
    assert world == World(1, 4, 1, 2, "10.0.0.1", 29500, True, 3)
    assert not world.drives
    assert not world.one_host


@pytest.mark.parametrize("without", [{}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_one_process_is_no_world(without: dict[str, str]) -> None:
    assert World.of_environment(without) is None


@pytest.mark.parametrize("name", ["RANK", "MASTER_PORT", "MASTER_ADDR"])
def test_what_is_missing_is_named(name: str) -> None:
    wrong = TORCHRUN | {name: "x"}
    if name == "MASTER_ADDR":
        del wrong[name]
    with pytest.raises(InvalidInputError, match=f"{name} is"):
        World.of_environment(wrong)


@pytest.mark.parametrize(
    ("omp", "expected"), [(None, max(1, machine_cores() // 2)), ("1", max(1, machine_cores() // 2))]
)
def test_processes_share_a_machines_cores(
    omp: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World.of_environment(TORCHRUN)
    assert world is not None
    if omp is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    assert world.threads() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert world.threads() == min(2, machine_cores())


def test_addresses() -> None:
    assert interface_address("lo") == route_to("127.0.0.1") == "127.0.0.1"
    with pytest.raises(InvalidInputError, match="GLOO_SOCKET_IFNAME is 'none0'"):
        interface_address("none0")


def test_asking_for_ranks_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UnsupportedError, match="needs the processes of torchrun"):
        LlamaPipeline.from_pretrained(bridge="distributed")
    with pytest.raises(InvalidInputError, match="there is one process"):
        serve()
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInputError, match="rank 1 of 4 has a stage, and rank 0 the pipeline"):
        LlamaPipeline.from_pretrained()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InvalidInputError, match="rank 0 has the pipeline"):
        serve()
