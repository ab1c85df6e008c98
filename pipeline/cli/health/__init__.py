"""What `lamella doctor` looks at: one module per subject, each yields findings."""

from __future__ import annotations
