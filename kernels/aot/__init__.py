"""Compile the kernels that models launch for GPUs that are not here, and see what they take."""

from __future__ import annotations

from kernels.aot.limits import ARCHS, default_archs
from kernels.aot.matrix import Compiled, Request, compile_matrix, print_code

__all__ = ["ARCHS", "Compiled", "Request", "compile_matrix", "default_archs", "print_code"]
