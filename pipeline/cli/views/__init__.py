"""How completions appear while they are made: streamed, as panels, as blocks, or not at all."""

from __future__ import annotations
