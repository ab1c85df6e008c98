"""The tokens of all sequences so far, kept where they outlive the processes, for a restart.

torchrun's agent keeps a store that stays when it starts its processes anew. The driver appends
every token to a log there, in a thread of its own; after a restart it prefills what the log has.
Beside it are the prompts, as standard input gives them once, and whether all has been printed.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from pipeline.distributed.world import World

_ENTRY = struct.Struct("<qq")  # prompt, token
_OWNER, _LOG, _PROMPTS, _PRINTED = _KEYS = ("owner", "log", "prompts", "printed")


class Journal:
    """A log of (prompt, token), for one run of some prompts.

    Args:
        world: whose store has the log.
        run: says which prompts and options the log is of.

    Attributes:
        foreign: whether an earlier start left something of another run.
        drawn: tokens of each prompt by number, of earlier starts.
        prompts: what an earlier start kept, or None.
        printed: whether an earlier start got to the end.
    """

    def __init__(self, world: World, run: str) -> None:
        from torch.distributed import PrefixStore

        # A connection of its own, as a store serves one question at a time.
        self._store: Any = PrefixStore("lamella/journal", world.open_store())
        self.foreign = False
        self.drawn: Mapping[int, Sequence[int]] = {}
        self.prompts: list[str] | None = None
        self.printed = False
        owner = self._get(_OWNER)
        if owner == run.encode():
            self.drawn = self._read()
            self.printed = self._get(_PRINTED) is not None
            if (prompts := self._get(_PROMPTS)) is not None:
                self.prompts = json.loads(prompts)
        else:
            self.foreign = owner is not None
            for key in _KEYS:
                self._store.delete_key(key)
            self._store.set(_OWNER, run)
        self._entries: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="lamella-journal", daemon=True)
        self._thread.start()

    def keep(self, prompts: list[str]) -> None:
        """Write down the prompts."""
        self._store.set(_PROMPTS, json.dumps(prompts))

    def note(self, prompt: int, token: int) -> None:
        """Append a token; never waits."""
        self._entries.put(_ENTRY.pack(prompt, token))

    def close(self, *, finished: bool) -> None:
        """Write what is still to be written and, when all is finished, that it was printed."""
        self._entries.put(None)
        self._thread.join(10.0)
        if finished:
            with suppress(RuntimeError):  # the agent is gone, and with it any restart
                self._store.set(_PRINTED, "1")

    def _write(self) -> None:
        more = True
        while more:
            entries = [self._entries.get()]
            while not self._entries.empty():  # all that came meanwhile goes at once
                entries.append(self._entries.get())
            more = entries[-1] is not None
            if log := b"".join(entry for entry in entries if entry is not None):
                try:
                    self._store.append(_LOG, log)
                except RuntimeError:  # the agent is gone, and with it any restart
                    return

    def _read(self) -> dict[int, list[int]]:
        drawn: dict[int, list[int]] = {}
        for prompt, token in _ENTRY.iter_unpack(self._get(_LOG) or b""):
            drawn.setdefault(prompt, []).append(token)
        return drawn

    def _get(self, key: str) -> bytes | None:
        return self._store.get(key) if self._store.check([key]) else None
