"""Time operators beside other libraries, between commits, and over launch configurations."""

from __future__ import annotations
