"""Text to tokens and back, through the `tokenizers` library and a checkpoint's `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import tokenizers

from kernels.errors import CheckpointError, InvalidInputError, UnsupportedError
from model.chat_template import ChatTemplate, read_chat_template
from model.config_values import is_int
from model.json_file import read_json
from model.special_tokens import SpecialTokens, read_special_tokens
from model.text_stream import TextStream

__all__ = ["TextStream", "Tokenizer"]


class Tokenizer:
    """A checkpoint's tokenizer, its special tokens and its chat template."""

    def __init__(
        self, backend: tokenizers.Tokenizer, special: SpecialTokens, template: str | None
    ) -> None:
        # A prompt is never cut or padded, whatever was set when the file was written.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special = special
        self._template = template

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Tokenizer:
        """Read `tokenizer.json` and, where they are, the files beside it.

        Special ids come from `generation_config.json`, else `config.json`, else
        `tokenizer_config.json`; the chat template from `chat_template.jinja`, else
        `tokenizer_config.json`.

        Raises:
            CheckpointError: `tokenizer.json` is missing, or a file is broken.
        """
        path = Path(folder)
        file = path / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, and only this form of tokenizer is read")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"{file} is no tokenizer: {error}") from error
        settings = path / "tokenizer_config.json"
        config = read_json(settings) if settings.exists() else {}
        special = read_special_tokens(path, config, backend.token_to_id)
        return cls(backend, special, read_chat_template(path, config))

    @property
    def vocab_size(self) -> int:
        """Tokens that have a text, added ones included; a model's own vocabulary may be larger."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, or None."""
        return self._special.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text; may be none, one or several."""
        return self._special.eos_token_ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a text; with those that `tokenizer.json` puts around it, unless told not to."""
        if not isinstance(text, str):
            raise InvalidInputError(f"cannot encode {text!r}: expected a text")
        try:
            # Unlike `encode`, this lets other threads run meanwhile, which can be seconds.
            return self._backend.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
        except (TypeError, UnicodeEncodeError) as error:  # half surrogates
            raise InvalidInputError(f"cannot encode {text!r}: {error}") from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of tokens. Bytes that are no UTF-8 become U+FFFD; ids without a text give none."""
        for token in ids:
            if not is_int(token) or not 0 <= token < 1 << 32:
                raise InvalidInputError(f"token id is {token!r}, expected an integer from 0")
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True, after: Sequence[int] = ()) -> TextStream:
        """Decode piece by piece what comes `after` other tokens, or from the beginning."""
        special = self._special_ids if skip_special_tokens else frozenset()
        return TextStream(
            lambda ids: self.decode(ids, skip_special_tokens),
            self._byte_ids,
            lambda token: token in special or self._backend.id_to_token(token) is None,
            after,
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint brings a chat template."""
        return self._template is not None

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """Text of a conversation, ready for `encode(text, add_special_tokens=False)`.

        Args:
            messages: objects with "role" and "content".
            add_generation_prompt: end with the opening of the assistant's turn.

        Raises:
            UnsupportedError: the checkpoint has no chat template.
            InvalidInputError: the template refuses the messages.
        """
        return self._chat.render(messages, add_generation_prompt=add_generation_prompt)

    @cached_property
    def _chat(self) -> ChatTemplate:
        if self._template is None:
            raise UnsupportedError("the checkpoint has no chat template")
        return ChatTemplate(self._template, self._special.texts)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token for token, what in added.items() if what.special)

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        """Tokens like "<0xE2>", if the decoder reads them as bytes."""
        decoder = json.loads(self._backend.to_str()).get("decoder") or {}
        steps = [decoder, *decoder.get("decoders", [])]
        if not any(step.get("type") == "ByteFallback" for step in steps):
            return frozenset()
        ids = (self._backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token for token in ids if token is not None)
