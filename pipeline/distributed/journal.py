"""The tokens of all sequences so far, kept where they outlive the processes, for a restart.

torchrun's agent keeps a store that stays when it starts its processes anew. The driver appends
every token to a log there, in a thread of its own; after a restart it prefills what the log has.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from pipeline.distributed.world import World

_ENTRY = struct.Struct("<qq")  # prompt, token
_OWNER, _LOG = "owner", "log"


class Journal:
    """A log of (prompt, token), for one run of some prompts.

    Args:
        world: whose store has the log.
        run: says which prompts and options the log is of.
    """

    def __init__(self, world: World, run: str) -> None:
        from torch.distributed import PrefixStore

        # A connection of its own, as a store serves one question at a time.
        self._store: Any = PrefixStore("lamella/journal", world.open_store())
        self.foreign = False
        self.drawn: Mapping[int, Sequence[int]] = {}
        if self._store.check([_OWNER]):
            self.foreign = self._store.get(_OWNER).decode() != run
            if not self.foreign:
                self.drawn = self._read()
        if not self.drawn:
            self._clear()
            self._store.set(_OWNER, run)
        self._entries: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="lamella-journal", daemon=True)
        self._thread.start()

    def note(self, prompt: int, token: int) -> None:
        """Append a token; never waits."""
        self._entries.put(_ENTRY.pack(prompt, token))

    def close(self, *, finished: bool) -> None:
        """Write what is still to be written, or, when all is finished, forget the run."""
        self._entries.put(None)
        self._thread.join(10.0)
        if finished:
            self._clear()

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
        log = self._store.get(_LOG) if self._store.check([_LOG]) else b""
        for prompt, token in _ENTRY.iter_unpack(log):
            drawn.setdefault(prompt, []).append(token)
        return drawn

    def _clear(self) -> None:
        for key in (_OWNER, _LOG):
            self._store.delete_key(key)
