"""Finding a checkpoint's safetensors files and reading their headers; no weights are read here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from safetensors import SafetensorError, safe_open

from kernels.errors import CheckpointError
from model.json_file import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and what its file's header says of it; `dtype` in safetensors' names."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the data; only for the dtypes of `DTYPES`."""
        count = DTYPES[self.dtype].itemsize
        for size in self.shape:
            count *= size
        return count


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint folder: of `model.safetensors`, or of the files of an index.

    Raises:
        CheckpointError: no safetensors, a file that is missing or truncated, an index that is
            broken, points outside the folder or does not match its files.
    """
    if (folder / SINGLE).exists():
        return _read_header(folder / SINGLE)
    if not (folder / INDEX).exists():
        raise CheckpointError(_no_weights(folder))
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map of tensor names to files")
    # every name is checked before any file is touched
    files = {file_name: _inside(folder, file_name) for file_name in _file_names(folder, weight_map)}
    tensors: dict[str, StoredTensor] = {}
    for file_name, file in files.items():
        for name, tensor in _read_header(file).items():
            if weight_map.get(name) != file_name:
                raise CheckpointError(
                    f"{file} has the tensor {name!r}, which {INDEX} places in "
                    f"{weight_map.get(name)!r}"
                )
            tensors[name] = tensor
    for name, file_name in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{folder / file_name} lacks {name!r}, named by {INDEX}")
    return tensors


def _file_names(folder: Path, weight_map: dict[str, object]) -> list[str]:
    """Each file that an index names, once."""
    names: dict[str, None] = {}
    for file_name in weight_map.values():
        if not isinstance(file_name, str) or not file_name.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / INDEX} names the file {file_name!r}, expected the name of a "
                ".safetensors file"
            )
        names[file_name] = None
    return list(names)


def _inside(folder: Path, file_name: str) -> Path:
    """The path of a file that an index names; it must lie in the checkpoint's own folder.

    A Hugging Face cache keeps its snapshots as links into a folder `blobs` beside them, which
    counts as inside.
    """
    where = f"{folder / INDEX} names the file {file_name!r}"
    name = PurePath(file_name)
    if name.is_absolute() or ".." in name.parts:
        raise CheckpointError(f"{where}, which is outside the checkpoint's folder")
    file = folder / name
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(file.resolve().is_relative_to(place) for place in allowed):
        raise CheckpointError(f"{where}, a link out of the checkpoint's folder to {file.resolve()}")
    return file


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            return {
                name: StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or no safetensors file: {error}") from error


def _no_weights(folder: Path) -> str:
    expected = f"expected {SINGLE} or {INDEX}"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    pickled = [name for name in names if name.endswith(_PICKLED)]
    if pickled:
        return (
            f"{folder} has only pickled weights ({', '.join(pickled[:3])}); pickles can run code, "
            f"so only safetensors are read: {expected}"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    found = f", found {', '.join(others[:3])}" if others else ""
    return f"{folder} has no weights: {expected}{found}"
