"""How fast a device is and how much memory it has: measured on a CPU, looked up for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from time import perf_counter

import torch

from kernels import linear
from pipeline.host_memory import available_memory

_COPIED_BYTES = 64 << 20  # more than the last-level cache of nearly all CPUs
_PRODUCT = (64, 1024)  # rows, and both sides of a weight that the cache holds
_COPIES, _PRODUCTS = 4, 16  # the best of so many is taken


@dataclass(frozen=True)
class DeviceProfile:
    """A device's speed and memory.

    Attributes:
        name: "cpu" or "cuda:<ordinal>"; stages on devices of one name share them.
        bandwidth: bytes a second between the device's memory and its cores, reads and writes.
        float32_rate, bfloat16_rate, float16_rate: operations a second of a matrix product.
        memory_bytes: what can still be allocated; None where that cannot be told.
        basis: where the speeds come from: "measured", "data sheet", "assumed" for a part that is
            not known, "absent" for a device that is not here, whose memory is assumed too.
    """

    name: str
    bandwidth: float
    float32_rate: float
    bfloat16_rate: float
    float16_rate: float
    memory_bytes: int | None
    basis: str

    def rate(self, dtype: torch.dtype) -> float:
        """Operations a second of products of `dtype`: float32, bfloat16 or float16."""
        by_dtype = {torch.bfloat16: self.bfloat16_rate, torch.float16: self.float16_rate}
        return by_dtype.get(dtype, self.float32_rate)

    def scaled(self, share: float) -> DeviceProfile:
        """As one sees it who has only this share of bandwidth and rates; the memory stays."""
        return replace(
            self,
            bandwidth=self.bandwidth * share,
            float32_rate=self.float32_rate * share,
            bfloat16_rate=self.bfloat16_rate * share,
            float16_rate=self.float16_rate * share,
        )


def device_profile(device: torch.device) -> DeviceProfile:
    """The profile of a CPU or CUDA device; of one that is not in this machine, `assumed_profile`.

    "cuda" without an ordinal is the current device.
    """
    if device.type == "cpu":
        return cpu_profile()
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    ordinal = device.index
    if ordinal is None:
        ordinal = torch.cuda.current_device() if here else 0
    return cuda_profile(ordinal) if ordinal < here else assumed_profile(f"cuda:{ordinal}")


def cutting_profiles(devices: Sequence[torch.device]) -> list[DeviceProfile]:
    """Profiles that give the same cuts each time, though no two measurements are equal.

    A CPU's speeds are nominal ones: measured ones, however rounded, would move a boundary now and
    then. On a CPU alone only their ratio could matter, and that hardly does.
    """
    nominal = DeviceProfile("cpu", 20e9, 160e9, 320e9, 160e9, available_memory(), "assumed")
    return [nominal if device.type == "cpu" else device_profile(device) for device in devices]


def cpu_profile() -> DeviceProfile:
    """This machine's CPU, with the threads that torch uses now and the memory available now.

    Speeds are measured once per process and number of threads, in about a tenth of a second; rates
    are those of one thread, times their number.
    """
    bandwidth, float32, bfloat16 = _measure(torch.get_num_threads())
    return DeviceProfile(
        "cpu",
        bandwidth,
        float32_rate=float32,
        bfloat16_rate=bfloat16,
        float16_rate=float32,  # no fast product of its own
        memory_bytes=available_memory(),
        basis="measured",
    )


def cuda_profile(ordinal: int) -> DeviceProfile:
    """A CUDA device of this machine, with the memory that is free now.

    The bandwidth is that of its memory's clock and bus where the driver tells them.
    """
    properties = torch.cuda.get_device_properties(ordinal)
    known = next((row for name, row in _PARTS if name in properties.name), None)
    bandwidth, half, single = known or _ASSUMED
    clock = getattr(properties, "memory_clock_rate", 0)  # kHz
    bus = getattr(properties, "memory_bus_width", 0)  # bits
    if clock and bus:
        bandwidth = 2 * clock * 1e3 * bus / 8  # two transfers a clock
    free, _ = torch.cuda.mem_get_info(ordinal)
    basis = "assumed" if known is None else "data sheet"
    return DeviceProfile(f"cuda:{ordinal}", bandwidth, single, half, half, free, basis)


def assumed_profile(name: str) -> DeviceProfile:
    """A device that is not here: an A100 with 80 GiB, from its data sheet."""
    bandwidth, half, single = _ASSUMED
    return DeviceProfile(name, bandwidth, single, half, half, 80 << 30, "absent")


# Part of the device's name: bytes a second; operations a second in bfloat16 and float16, dense, by
# tensor cores, and in float32. NVIDIA's data sheets; longer names before those they contain.
_ASSUMED = (2.039e12, 312e12, 19.5e12)
_PARTS = (
    ("B200", (8e12, 2250e12, 75e12)),
    ("H200", (4.8e12, 989e12, 67e12)),
    ("H100 PCIe", (2e12, 756e12, 51e12)),
    ("H100 NVL", (3.9e12, 835e12, 60e12)),
    ("H100", (3.35e12, 989e12, 67e12)),
    ("A100", _ASSUMED),
    ("L40S", (0.864e12, 362e12, 91.6e12)),
    ("L4", (0.3e12, 121e12, 30.3e12)),
    ("A10", (0.6e12, 125e12, 31.2e12)),
    ("RTX 4090", (1.008e12, 165.2e12, 82.6e12)),
    ("RTX 3090", (0.936e12, 71e12, 35.6e12)),
    ("T4", (0.32e12, 65e12, 8.1e12)),
)


@cache
def _measure(threads: int) -> tuple[float, float, float]:
    """Bandwidth of a copy, and rates of float32 and bfloat16 products, the best of some rounds."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8)
    target = torch.zeros_like(source)
    copying = min(_seconds(lambda: target.copy_(source)) for _ in range(_COPIES))
    # Products in one thread: where others use the cores, threads that wait for each other's parts
    # make one many times slower, and how many depends on them.
    with ThreadPoolExecutor(1) as pool:
        single, half = pool.submit(_product_rates, (torch.float32, torch.bfloat16)).result()
    return 2 * _COPIED_BYTES / copying, threads * single, threads * half


def _product_rates(dtypes: Sequence[torch.dtype]) -> list[float]:
    """Operations a second of one thread; for a thread of its own, whose number of threads it sets.

    What that number is elsewhere, and what new threads begin with, is as before afterwards.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_product_rate(dtype) for dtype in dtypes]
    finally:
        torch.set_num_threads(before)


def _product_rate(dtype: torch.dtype) -> float:
    rows, side = _PRODUCT
    with torch.inference_mode():
        weight = linear.pack(torch.full((side, side), 0.5, dtype=dtype), impl="cpu")
        x = torch.full((rows, side), 0.5, dtype=dtype)
        seconds = min(_seconds(lambda: linear.linear(x, weight)) for _ in range(_PRODUCTS))
    return 2 * rows * side * side / seconds


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
