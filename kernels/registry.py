"""The operators as data: what `check`, `aot`, `bench`, the tests and the notebooks iterate over.

The model does not go through it; it calls the operators' public functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kernels.attention.cases import ATTENTION
from kernels.decode_mlp.cases import DECODE_MLP
from kernels.linear.cases import LINEAR
from kernels.logits.cases import GREEDY, LOGITS
from kernels.op import Op
from kernels.override import require_operator
from kernels.rms_norm.cases import RMS_NORM
from kernels.rope_append.cases import ROPE_APPEND

__all__ = ["OPS", "Op", "get_op"]

OPS: Mapping[str, Op] = MappingProxyType(
    {op.name: op for op in (RMS_NORM, ROPE_APPEND, ATTENTION, DECODE_MLP, LINEAR, LOGITS, GREEDY)}
)


def get_op(name: str) -> Op:
    """The operator called `name`. Raises `InvalidInputError` for an unknown one."""
    require_operator(name)
    return OPS[name]
