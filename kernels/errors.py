"""The errors that users meet; all derive from `LamellaError`, so one `except` catches them."""

from __future__ import annotations


class LamellaError(Exception):
    """Base of every error that Lamella raises on purpose."""


class InvalidInputError(LamellaError, ValueError):
    """An argument is outside what the function takes; nothing was changed."""


class UnsupportedError(LamellaError, NotImplementedError):
    """The request is understood, but this build, device or implementation cannot serve it."""


class CapacityError(LamellaError, RuntimeError):
    """The KV cache has too little room; checked before anything is written."""


class CheckpointError(LamellaError, ValueError):
    """A checkpoint is missing, truncated, mis-shaped or of a kind that is not supported."""
