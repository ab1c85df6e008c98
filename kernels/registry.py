"""The operators as data: what `check`, `aot`, `bench`, the tests and the notebooks iterate over.

The model does not go through it; it calls the operators' public functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kernels.budget import Budget, Verdict, judge
from kernels.case_inputs import Case, Inputs, widen
from kernels.dispatch import implementations
from kernels.override import require_operator


@dataclass(frozen=True)
class Op:
    """One operator.

    `make_inputs(case, device)` gives the same inputs each time; `bind(inputs, impl)` does what is
    done once (packing weights) and returns the call itself, for timing; `collect(inputs, raw)`
    names the tensors that the call wrote or returned. `flops` and `bytes_moved` are of one call:
    what the operation needs at least, not what an implementation does. `aot` names the signatures
    of Triton kernels to compile ahead of time.
    """

    name: str
    cases: tuple[Case, ...]
    make_inputs: Callable[[Case, str], Inputs]
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
        """Measure `impl` on `case` against the float64 reference, output by output."""
        oracle = self.run(widen(self.make_inputs(case, device)), "reference")
        reference = self.run(self.make_inputs(case, device), "reference")
        actual = self.run(self.make_inputs(case, device), impl)
        return [
            judge(name, actual[name], reference[name], oracle[name], self.budget) for name in oracle
        ]


def get_op(name: str) -> Op:
    """The operator called `name`. Raises `InvalidInputError` for an unknown one."""
    require_operator(name)
    return OPS[name]


def _ops() -> dict[str, Op]:
    # Here, because each operator's cases build an `Op`.
    from kernels.attention.cases import ATTENTION
    from kernels.decode_mlp.cases import DECODE_MLP
    from kernels.linear.cases import LINEAR
    from kernels.logits.cases import GREEDY, LOGITS
    from kernels.rms_norm.cases import RMS_NORM
    from kernels.rope_append.cases import ROPE_APPEND

    ops = (RMS_NORM, ROPE_APPEND, ATTENTION, DECODE_MLP, LINEAR, LOGITS, GREEDY)
    return {op.name: op for op in ops}


OPS: Mapping[str, Op] = _ops()
