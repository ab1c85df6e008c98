"""Small checks of a configuration's values, with errors that name the field."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from kernels.errors import InvalidInputError


def or_default(value: Any, default: Any) -> Any:
    """`default` where a field is absent or null."""
    return default if value is None else value


def is_int(value: object) -> TypeGuard[int]:
    """Whether it is an integer; JSON's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number; JSON's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def require_positive_int(name: str, value: object) -> None:
    """Raise `InvalidInputError` unless the field is an integer from 1."""
    if not is_int(value) or value < 1:
        raise InvalidInputError(f"{name} is {value!r}, expected a positive integer")


def require_positive_number(name: str, value: object) -> None:
    """Raise `InvalidInputError` unless the field is a finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise InvalidInputError(f"{name} is {value!r}, expected a number above 0")


def require_bool(name: str, value: object) -> None:
    """Raise `InvalidInputError` unless the field is true or false."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} is {value!r}, expected true or false")


def token_ids(name: str, value: object) -> tuple[int, ...]:
    """Token ids from a field that is null, one id or a list of them; each id once."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(is_int(item) for item in values):
        raise InvalidInputError(f"{name} is {value!r}, expected an id or a list of ids")
    return tuple(dict.fromkeys(values))
