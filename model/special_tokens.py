"""Which tokens begin and end a text, gathered from a checkpoint's JSON files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.errors import CheckpointError, InvalidInputError
from model.config_values import token_ids
from model.json_file import read_json

_NAMES = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))


@dataclass(frozen=True)
class SpecialTokens:
    """Ids to begin and end with, and the texts that chat templates use, by name."""

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    texts: Mapping[str, str]


def read_special_tokens(
    folder: Path, tokenizer_config: Mapping[str, Any], token_to_id: Callable[[str], int | None]
) -> SpecialTokens:
    """Ids from the first file that names them, each kind on its own.

    The order is `generation_config.json`, `config.json`, `tokenizer_config.json`: what was tuned
    for generation wins, as in transformers.
    """
    older = folder / "special_tokens_map.json"
    sources = [tokenizer_config, *([read_json(older)] if older.exists() else [])]
    texts = {
        name: text
        for source in reversed(sources)
        for name in _NAMES
        if (text := _text(source.get(name)))
    }
    found = []
    for kind in ("bos_token", "eos_token"):
        ids: tuple[int, ...] = ()
        for file in (folder / "generation_config.json", folder / "config.json"):
            if not ids and file.exists():
                try:
                    ids = token_ids(f"{kind}_id", read_json(file).get(f"{kind}_id"))
                except InvalidInputError as error:
                    raise CheckpointError(f"{file}: {error}") from error
        if not ids and kind in texts:
            own = token_to_id(texts[kind])
            ids = () if own is None else (own,)
        found.append(ids)
    bos, eos = found
    return SpecialTokens(bos[0] if bos else None, eos, texts)


def _text(value: object) -> str | None:
    """The text of a token in `tokenizer_config.json`: plain, or in an object with its flags."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None
