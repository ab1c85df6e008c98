"""Measure implementations against the float64 reference, in processes of their own."""

from __future__ import annotations

from kernels.checking.matrix import Checked, CheckJob, check_jobs, run_checks

__all__ = ["CheckJob", "Checked", "check_jobs", "run_checks"]
