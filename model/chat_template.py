"""Chat templates: Jinja in a sandbox, with the variables and settings that transformers gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from kernels.errors import CheckpointError, InvalidInputError


def read_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Source of the template: `chat_template.jinja`, or a field of `tokenizer_config.json`.

    Of several in the field, the one called "default".
    """
    file = folder / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if _is_object(item)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{folder}: chat_template is {template!r}, expected a text")
    return template


class ChatTemplate:
    """A compiled template, which sees copies of plain data and can reach nothing else."""

    def __init__(self, source: str, special_texts: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.globals["dict"] = _make_dict
        environment.globals["namespace"] = _Namespace
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"chat template, line {error.lineno}: {error.message}") from error
        self._special_texts = dict(special_texts)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; it has its own special tokens, so encode it without adding.

        Raises:
            InvalidInputError: the messages are not what the template takes; its own words.
        """
        if not messages:
            raise InvalidInputError("the conversation is empty, expected at least one message")
        for message in messages:
            if not isinstance(message, Mapping) or "role" not in message:
                raise InvalidInputError(f"chat message is {message!r}, expected role and content")
        try:
            return self._template.render(
                messages=json.loads(json.dumps(list(messages))),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_texts,
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise InvalidInputError(f"the chat template refuses the messages: {error}") from error


class _Generation(Extension):
    """`{% generation %}` marks what an assistant says, for training; here it only shows it."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's namespace without names that begin with "_", which lead to Python's internals."""

    def __init__(self, **values: Any) -> None:
        for name in values:
            _refuse_private(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not store the name {name!r}")


def _make_dict(*values: Any, **named: Any) -> dict[Any, Any]:
    """`dict` as a function: the class itself has attributes that a template should not see."""
    return dict(*values, **named)


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes what HTML would read."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
