"""What one operator's entry in the registry holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernels.budget import Budget, Verdict, judge
from kernels.case_inputs import Case, Inputs, widen
from kernels.dispatch import implementations
from kernels.errors import InvalidInputError
from kernels.override import override

Function = Callable[..., Any]
_POOLED_ELEMENTS = 2000
_MOST_DRAWS = 64
_EXACT_DRAWS = 8  # of outputs that must be equal: each stands for itself


@dataclass(frozen=True)
class Op:
    """One operator.

    `make_inputs(case, device, draw)` gives the same inputs each time, others for each draw;
    `bind(inputs, impl)` does what is done once (packing weights) and returns the call itself, for
    timing; `collect(inputs, raw)` names the tensors that the call wrote or returned. `flops` and
    `bytes_moved` are of one call: what the operation needs at least, not what an implementation
    does. `aot` are calls that models make, whose kernels are compiled ahead of time; the inputs of
    these are made on the device "meta".
    """

    name: str
    cases: tuple[Case, ...]
    make_inputs: Callable[[Case, str, int], Inputs]
    bind: Callable[[Inputs, str], Callable[[], Any]]
    collect: Callable[[Inputs, Any], dict[str, Tensor]]
    flops: Callable[[Case], int]
    bytes_moved: Callable[[Case], int]
    budget: Budget = field(default_factory=Budget)
    aot: tuple[Case, ...] = ()

    @property
    def implementations(self) -> dict[str, str]:
        """Implementation -> module, for those that are there; "cpu" may be the reference's."""
        return implementations(self.name)

    def run(self, inputs: Inputs, impl: str, own: Function | None = None) -> dict[str, Tensor]:
        """Call the operator once; rope_append writes into the pool that `inputs` holds.

        `own` stands in for the operator, with weights packed for `impl`.
        """
        call = self.bind(inputs, impl)
        with override(self.name, own) if own is not None else nullcontext():
            return self.collect(inputs, call())

    def check(
        self, case: Case, impl: str, device: str = "cpu", own: Function | None = None
    ) -> list[Verdict]:
        """Measure `impl`, or `own`, on `case` against the float64 reference, output by output."""
        return Yardstick(self, case, device).measure(impl, own)


class Yardstick:
    """What implementations are measured against on one case: the reference at the inputs' precision
    and in float64.

    Small outputs are drawn several times and pooled: the mean of four errors is chance.
    """

    def __init__(self, op: Op, case: Case, device: str = "cpu") -> None:
        self._op, self._case, self._device = op, case, device
        draws = [self._draw(0)]
        # Realistic sizes are drawn once: they take long, and are there to be timed.
        drawn = draws[0][1].values()
        count = 1 if case.bench else max(_draws_for(oracle) for oracle in drawn)
        draws += [self._draw(draw) for draw in range(1, count)]
        self._references, self._oracles = zip(*draws, strict=True)

    def measure(self, impl: str, own: Function | None = None) -> list[Verdict]:
        """The verdict on each output of `impl`, or of `own` with weights packed for `impl`.

        Raises `InvalidInputError` for an output whose shape or dtype is not the reference's.
        """
        op = self._op
        actual = self._references
        if impl != "reference" or own is not None:
            draws = range(len(self._oracles))
            actual = tuple(op.run(self._inputs(draw), impl, own) for draw in draws)
        for mine, expected in zip(actual, self._references, strict=True):
            _require_alike(mine, expected)
        return [
            judge(
                name,
                _pool(name, actual),
                _pool(name, self._references),
                _pool(name, self._oracles),
                op.budget,
            )
            for name in self._oracles[0]
        ]

    def _inputs(self, draw: int) -> Inputs:
        return self._op.make_inputs(self._case, self._device, draw)

    def _draw(self, draw: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inputs = self._inputs(draw)
        # The oracle first: rope_append's reference writes into the pool.
        oracle = self._op.run(widen(inputs), "reference")
        return self._op.run(inputs, "reference"), oracle


def _require_alike(actual: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    for name, expected in reference.items():
        output = actual.get(name)
        if not isinstance(output, Tensor):
            raise InvalidInputError(f"{name} is {type(output).__name__}; expected a tensor")
        if (output.shape, output.dtype) != (expected.shape, expected.dtype):
            raise InvalidInputError(
                f"{name} is {_kind(output)}; the reference's is {_kind(expected)}"
            )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _pool(name: str, draws: tuple[dict[str, Tensor], ...]) -> Tensor:
    return torch.cat([draw[name].flatten() for draw in draws])


def _draws_for(output: Tensor) -> int:
    """How many draws of an output make a mean that is not chance."""
    if not output.is_floating_point():
        return _EXACT_DRAWS
    return min(_MOST_DRAWS, math.ceil(_POOLED_ELEMENTS / max(output.numel(), 1)))
