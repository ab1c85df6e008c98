"""Which checkpoint folder a command works on."""

from __future__ import annotations

from pathlib import Path

from model.bundled_model import bundled_model_path
from pipeline.cli.errors import usage_error

BUNDLED = bundled_model_path()
HELD_OUT = BUNDLED / "heldout.txt"
DEMO_PROMPTS = BUNDLED / "prompts.txt"


def checkpoint_folder(given: Path | None) -> Path:
    """The folder of `--model`, or of the bundled model; must be a folder with a config.json."""
    if given is None:
        return BUNDLED
    if not given.is_dir():
        raise usage_error("--model", given, "not a folder; give one with config.json and weights")
    if not (given / "config.json").is_file():
        raise usage_error("--model", given, "has no config.json; give a checkpoint's folder")
    return given
