"""Where the small model that ships with the package lies."""

from __future__ import annotations

from pathlib import Path


def bundled_model_path() -> Path:
    """Folder of the bundled checkpoint, in Hugging Face format."""
    return Path(__file__).parent / "bundled"
