"""The checkpoint that commands use by default: is it there, and can it be read?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from kernels.errors import LamellaError
from model.checkpoint import Checkpoint
from model.tokenizer import Tokenizer
from model.weights import stage_nbytes
from pipeline.cli.errors import describe
from pipeline.cli.health.finding import Finding
from pipeline.cli.sizes import nbytes_text

SUBJECT = "bundled model"
FIX = "fetch the repository's files again, or install lamella again"


def checkpoint(folder: Path) -> Iterator[Finding]:
    """Headers of the weights, and the tokenizer, of the checkpoint in `folder`."""
    yield _reading("weights", folder, _weights)
    yield _reading("tokenizer", folder, lambda path: f"{Tokenizer.load(path).vocab_size} tokens")


def _reading(name: str, folder: Path, read: Callable[[Path], str]) -> Finding:
    try:
        return Finding(SUBJECT, name, "ok", read(folder))
    except (LamellaError, OSError) as error:
        return Finding(SUBJECT, name, "fail", describe(error), FIX)


def _weights(folder: Path) -> str:
    source = Checkpoint.open(folder)
    layers = range(source.config.num_hidden_layers)
    size = stage_nbytes(source, layers, embed=True, head=True)
    source.tensor("model.norm.weight")
    return f"{source.config.model_type}, {len(layers)} layers, {nbytes_text(size)} in {folder}"
