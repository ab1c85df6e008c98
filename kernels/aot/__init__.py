"""Compile the kernels that models launch for GPUs that are not here, and see what they take."""

from __future__ import annotations

from kernels.aot.limits import ARCHS, DEFAULT_ARCHS
from kernels.aot.matrix import Compiled, Request, compile_matrix, print_code

__all__ = ["ARCHS", "DEFAULT_ARCHS", "Compiled", "Request", "compile_matrix", "print_code"]
