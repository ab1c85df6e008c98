"""What one operator's entry in the registry holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernels.budget import Budget, Verdict, judge
from kernels.case_inputs import Case, Inputs, widen
from kernels.dispatch import implementations

_POOLED_ELEMENTS = 2000
_MOST_DRAWS = 64


@dataclass(frozen=True)
class Op:
    """One operator.

    `make_inputs(case, device, draw)` gives the same inputs each time, others for each draw;
    `bind(inputs, impl)` does what is done once (packing weights) and returns the call itself, for
    timing; `collect(inputs, raw)` names the tensors that the call wrote or returned. `flops` and
    `bytes_moved` are of one call: what the operation needs at least, not what an implementation
    does. `aot` names the signatures of Triton kernels to compile ahead of time.
    """

    name: str
    cases: tuple[Case, ...]
    make_inputs: Callable[[Case, str, int], Inputs]
    bind: Callable[[Inputs, str], Callable[[], Any]]
    collect: Callable[[Inputs, Any], dict[str, Tensor]]
    flops: Callable[[Case], int]
    bytes_moved: Callable[[Case], int]
    budget: Budget = field(default_factory=Budget)
    aot: tuple[Mapping[str, str], ...] = ()

    @property
    def implementations(self) -> dict[str, str]:
        """Implementation -> module, for those that are there; "cpu" may be the reference's."""
        return implementations(self.name)

    def run(self, inputs: Inputs, impl: str) -> dict[str, Tensor]:
        """Call the operator once; rope_append writes into the pool that `inputs` holds."""
        return self.collect(inputs, self.bind(inputs, impl)())

    def check(self, case: Case, impl: str, device: str = "cpu") -> list[Verdict]:
        """Measure `impl` on `case` against the float64 reference, output by output.

        Small outputs are drawn several times and pooled: the mean of four errors is chance.
        """
        draws = [self._measure(case, impl, device, 0)]
        smallest = min(len(oracle) for _, _, oracle in draws[0].values())
        count = min(_MOST_DRAWS, math.ceil(_POOLED_ELEMENTS / max(smallest, 1)))
        draws += [self._measure(case, impl, device, draw) for draw in range(1, count)]
        verdicts = []
        for name in draws[0]:
            actual, reference, oracle = (
                torch.cat([draw[name][part] for draw in draws]) for part in range(3)
            )
            verdicts.append(judge(name, actual, reference, oracle, self.budget))
        return verdicts

    def _measure(
        self, case: Case, impl: str, device: str, draw: int
    ) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Output -> (that of `impl`, the reference's, the oracle's), flattened."""

        make = self.make_inputs
        oracle = self.run(widen(make(case, device, draw)), "reference")
        reference = self.run(make(case, device, draw), "reference")
        actual = self.run(make(case, device, draw), impl)
        return {
            name: (actual[name].flatten(), reference[name].flatten(), oracle[name].flatten())
            for name in oracle
        }
