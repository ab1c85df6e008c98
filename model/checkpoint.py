"""A checkpoint folder in Hugging Face format: checked when opened, read tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from kernels.errors import CheckpointError
from model.checkpoint_files import DTYPES, StoredTensor, read_headers
from model.config import LlamaConfig
from model.json_file import read_json
from model.weight_names import (
    EMBEDDING,
    LM_HEAD,
    has_bias,
    linear_parts,
    stored_shapes,
    tensor_shape,
)
from model.weights import LinearWeights

# Bytes copied out of a file's mapping at once. Each piece maps the file anew, so that of the
# file never more than this counts as the process's memory.
_PIECE = 8 << 20

# Tables of old exports that can be worked out again.
_DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", re.ASCII)


class Checkpoint:
    """A `WeightSource` over safetensors files; opening reads only their headers."""

    def __init__(
        self, folder: Path, config: LlamaConfig, tensors: Mapping[str, StoredTensor]
    ) -> None:
        self.folder = folder
        self.config = config
        self.dtype = DTYPES[tensors[EMBEDDING].dtype]
        self._tensors = tensors

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> Checkpoint:
        """Read the configuration and the headers, and check one against the other.

        Raises:
            CheckpointError: files are missing, truncated, mis-shaped, of mixed or other dtypes,
                or outside the folder; the message names the file or tensor.
            UnsupportedError: a model or option that is not implemented.
        """
        path = Path(folder)
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a folder, expected a checkpoint's folder")
        config = LlamaConfig.from_json(path)
        tensors = read_headers(path)
        untied = read_json(path / "config.json").get("tie_word_embeddings") is False
        _check_tensors(path, config, tensors, untied)
        return cls(path, config, tensors)

    def tensor(self, name: str) -> torch.Tensor:
        """Read the embedding [V, H] or a norm's weight, in the checkpoint's dtype.

        Raises:
            CheckpointError: a value is not finite, or the file changed since it was opened.
            InvalidInputError: the model has no such tensor.
        """
        result = torch.empty(tensor_shape(self.config, name), dtype=self.dtype)
        self._read_into(result, name)
        return result

    def linear(self, name: str) -> LinearWeights:
        """Read a linear [N, K] and its bias [N], parts one below the other; raises as `tensor`."""
        parts = self._parts(name)
        rows = sum(count for _, count, _ in parts)
        weight = torch.empty(rows, parts[0][2], dtype=self.dtype)
        bias = torch.empty(rows, dtype=self.dtype) if has_bias(self.config, name) else None
        start = 0
        for part, count, _ in parts:
            self._read_into(weight[start : start + count], self._stored_weight(part))
            if bias is not None:
                self._read_into(bias[start : start + count], f"{part}.bias")
            start += count
        return LinearWeights(weight, bias)

    def has(self, name: str) -> bool:
        """Whether a tensor of this stored name is in the files."""
        return name in self._tensors

    def nbytes(self, name: str) -> int:
        """Bytes in the files of `tensor(name)` or `linear(name)`; a tied head is the embedding."""
        if name.endswith(".weight"):
            tensor_shape(self.config, name)
            return self._tensors[name].nbytes
        stored = [self._stored_weight(part) for part, _, _ in self._parts(name)]
        if has_bias(self.config, name):
            stored += [f"{part}.bias" for part, _, _ in self._parts(name)]
        return sum(self._tensors[name].nbytes for name in stored)

    def _parts(self, name: str) -> tuple[tuple[str, int, int], ...]:
        return linear_parts(self.config, name)

    def _stored_weight(self, part: str) -> str:
        """Stored name of a linear's weight; without a head of its own the embedding serves."""
        weight = f"{part}.weight"
        return EMBEDDING if part == LM_HEAD and weight not in self._tensors else weight

    def _read_into(self, target: torch.Tensor, name: str) -> None:
        """Copy a stored tensor into `target`, of the same shape, and check that it is finite."""
        file = self._tensors[name].file
        step = max(1, _PIECE // target[0].nbytes)
        for start in range(0, len(target), step):
            piece = target[start : start + step]
            try:
                with safe_open(file, framework="pt") as handle:
                    stored = handle.get_slice(name)[start : start + step]
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file}: {name} can no longer be read: {error}") from error
            if stored.shape != piece.shape or stored.dtype != piece.dtype:
                raise CheckpointError(f"{file}: {name} changed since the checkpoint was opened")
            piece.copy_(stored)
            del stored  # the mapping goes with the last tensor over it
            _check_finite(piece, name, file)


def _check_finite(piece: torch.Tensor, name: str, file: Path) -> None:
    low, high = torch.aminmax(piece)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        count = int((~torch.isfinite(piece)).sum())
        raise CheckpointError(f"{file}: {name} has {count} or more values that are NaN or infinite")


def _check_tensors(
    folder: Path, config: LlamaConfig, tensors: Mapping[str, StoredTensor], untied: bool
) -> None:
    """Compare the headers with what the configuration asks for."""
    expected = stored_shapes(config)
    head = f"{LM_HEAD}.weight"
    if head not in tensors and not untied:
        del expected[head]
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise CheckpointError(f"{folder} lacks {_some(missing)}")
    extra = [name for name in tensors if name not in expected and not _DERIVED.fullmatch(name)]
    if extra:
        raise CheckpointError(
            f"{folder} has {_some(extra)}, which a {config.model_type} with this config.json has "
            "no use for"
        )
    first = tensors[EMBEDDING]
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{tensor.file}: {name} has dtype {tensor.dtype}, expected {', '.join(DTYPES)}"
            )
        if tensor.dtype != first.dtype:
            raise CheckpointError(
                f"{tensor.file}: {name} has dtype {tensor.dtype}, expected {first.dtype} as "
                f"{EMBEDDING} has"
            )
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: {name} has shape {list(tensor.shape)}, expected {list(shape)}"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
