"""How long a call takes: the median over many runs, and how far they spread.

On a GPU each run starts with an L2 cache that holds nothing of it, and the call is replayed from a
CUDA graph where it can be captured, so that what the host does between launches is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch

from kernels import workspace

Call = Callable[[], Any]

_FLUSH_BYTES = 256 << 20  # several times the largest L2 cache
_COPY_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
_SAMPLE_SECONDS = 2e-4  # shorter calls are timed several at a time
_MOST_RUNS = 50_000  # a bound for memory: seconds decide
NOISY = 0.25  # a spread above this is told


@dataclass(frozen=True)
class Timing:
    """Median of one call in microseconds; `spread`: half the range between the quartiles, over the
    median; `runs` behind them; whether the host's time is in it (`graph` false on a GPU)."""

    median_us: float
    spread: float
    runs: int
    graph: bool = False


def time_call(call: Call, device: str, seconds: float = 0.3) -> Timing:
    """Time `call` for about `seconds`, after warming up."""
    with torch.inference_mode():
        if device.startswith("cuda"):
            return _on_gpu(call, seconds)
        return _on_cpu(call, seconds)


def copy_bandwidth(device: str, seconds: float = 0.5) -> float:
    """Bytes read and written a second by torch's copy of a large tensor."""
    count = _COPY_BYTES[device.split(":")[0]]
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * count / (time_call(lambda: target.copy_(source), device, seconds).median_us * 1e-6)


def product_rate(device: str, seconds: float = 0.5) -> float:
    """Floating-point operations a second of the library's product of large bfloat16 matrices."""
    size = 8192 if device.startswith("cuda") else 1024
    a = torch.randn(size, size, device=device).bfloat16()
    return 2 * size**3 / (time_call(lambda: a @ a, device, seconds).median_us * 1e-6)


def _on_cpu(call: Call, seconds: float) -> Timing:
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    inner = max(1, int(_SAMPLE_SECONDS / max(once, 1e-9)))
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 5 or (time.perf_counter() < end and len(samples) < _MOST_RUNS):
        start = time.perf_counter()
        for _ in range(inner):
            call()
        samples.append((time.perf_counter() - start) / inner)
    return _summary(samples)


def _on_gpu(call: Call, seconds: float) -> Timing:
    stream = torch.cuda.Stream()
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()  # the inputs come from another stream
    with torch.cuda.stream(stream), workspace.held():
        for _ in range(3):
            call()
        stream.synchronize()
        replay, graph = _captured(call, stream)
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while len(samples) < 10 or (time.perf_counter() < end and len(samples) < _MOST_RUNS):
            events = []
            for _ in range(10):
                flush.zero_()
                begin, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                replay()
                done.record()
                events.append((begin, done))
            stream.synchronize()
            samples += [begin.elapsed_time(done) * 1e-3 for begin, done in events]
    return _summary(samples, graph)


def _captured(call: Call, stream: torch.cuda.Stream) -> tuple[Call, bool]:
    """The call as a graph, or itself where it cannot be one."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call, False
    return graph.replay, True


def _summary(samples: list[float], graph: bool = False) -> Timing:
    low, middle, high = quantiles(samples, n=4)
    return Timing(middle * 1e6, (high - low) / 2 / middle, len(samples), graph)
