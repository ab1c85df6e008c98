"""Reading a checkpoint's JSON files with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kernels.errors import CheckpointError


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `CheckpointError` if it is missing, broken or no object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds a {type(value).__name__}, expected a JSON object")
    return value
