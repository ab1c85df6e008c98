"""The device that `pytest --device` chose, and the implementations to test there."""

from __future__ import annotations

import os

DEVICE = os.environ.get("LAMELLA_TEST_DEVICE", "cpu")
IMPLS = ("cpu", "reference", "triton") if DEVICE == "cpu" else ("reference", "triton")
