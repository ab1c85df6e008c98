"""Profiles: what is measured, looked up and assumed, and what must not differ between runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.device_profile import (
    DeviceProfile,
    assumed_profile,
    cpu_profile,
    cuda_profile,
    cutting_profiles,
    device_profile,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MEASURED = DeviceProfile("cpu", 21e9, 150e9, 400e9, 150e9, 2**30, "measured")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine with two GPUs, whose properties the test may fill in."""
    properties: dict[str, Any] = {"name": "NVIDIA H100 80GB HBM3"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 << 30, 80 << 30))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**properties)
    )
    return properties


def test_the_cpu_is_measured_once() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, again = cpu_profile(), cpu_profile()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads
    assert first.basis == "measured"
    assert replace(first, memory_bytes=None) == replace(again, memory_bytes=None)
    for speed in (first.bandwidth, first.float32_rate, first.bfloat16_rate):
        assert 1e7 < speed < 1e16
    assert first.rate(torch.bfloat16) == first.bfloat16_rate
    assert first.rate(torch.float16) == first.rate(torch.float32) == first.float32_rate


def test_a_share_is_of_speed_alone() -> None:
    half = MEASURED.scaled(0.5)
    assert (half.bandwidth, half.bfloat16_rate) == (10.5e9, 200e9)
    assert half.memory_bytes == MEASURED.memory_bytes


@pytest.mark.usefixtures("gpu")
def test_nothing_is_measured_for_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.device_profile._measure", lambda _: pytest.fail("measured"))
    first, second = cutting_profiles([CPU, CPU])
    assert first == second
    beside, sheet = cutting_profiles([CPU, CUDA])
    assert replace(beside, memory_bytes=None) == replace(first, memory_bytes=None)
    assert sheet == device_profile(CUDA)


def test_a_gpu_is_what_its_data_sheet_says(gpu: dict[str, Any]) -> None:
    profile = device_profile(CUDA)
    assert profile == DeviceProfile(
        "cuda:0", 3.35e12, 67e12, 989e12, 989e12, 70 << 30, "data sheet"
    )
    gpu["name"] = "NVIDIA H100 PCIe"
    assert cuda_profile(0).bandwidth == 2e12
    gpu |= {"memory_clock_rate": 2_619_000, "memory_bus_width": 5120}
    assert cuda_profile(0).bandwidth == pytest.approx(3.35e12, rel=0.01)


@pytest.mark.usefixtures("gpu")
def test_cuda_without_an_ordinal_is_the_current_device() -> None:
    assert device_profile(torch.device("cuda")).name == "cuda:1"


def test_a_gpu_of_an_unknown_kind_has_assumed_speeds(gpu: dict[str, Any]) -> None:
    gpu["name"] = "Quadro 9"
    profile = device_profile(CUDA)
    assert profile.basis == "assumed"
    assert profile.memory_bytes == 70 << 30


@pytest.mark.usefixtures("gpu")
def test_a_device_of_another_machine_is_an_assumed_one() -> None:
    assert device_profile(torch.device("cuda", 2)) == assumed_profile("cuda:2")
    assert assumed_profile("cuda:2").basis == "absent"
