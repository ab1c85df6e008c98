"""What ranks tell each other while they start, over the store; nobody waits for a dead one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from kernels.errors import LamellaError
from pipeline.distributed.heartbeat import Heartbeat

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")

_LOOK_SECONDS = 0.02


class Board:
    """Notes for all ranks of this start of the processes.

    Args:
        store: of this start alone.
        heart: watches the ranks that notes are awaited from.
    """

    def __init__(self, store: Store, heart: Heartbeat) -> None:
        self._store = store
        self._heart = heart

    def post(self, name: str, note: Any) -> None:
        """Write a note, as JSON."""
        self._store.set(name, json.dumps(note))

    def read(self, name: str) -> Any:
        """Wait for a note.

        Raises `RankLostError` if a rank is lost meanwhile, `LamellaError` if one ends.
        """
        while True:
            left = self._heart.left  # asked first: it may leave after writing
            if self._store.check([name]):
                return json.loads(self._store.get(name))
            check_all_here(self._heart, left)
            time.sleep(_LOOK_SECONDS)


def patiently(heart: Heartbeat, work: Callable[[], T]) -> T:
    """Do what may block for ever if a rank is lost; raises `RankLostError` then.

    The work is left behind in its thread, as nothing can cancel it.
    """
    done = threading.Event()
    values: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            values.append(work())
        except BaseException as error:  # raised where it is waited for
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="lamella-connect", daemon=True).start()
    while not done.wait(_LOOK_SECONDS):
        check_all_here(heart, heart.left)
    for error in errors:
        heart.check()
        raise error
    return values[0]


def check_all_here(heart: Heartbeat, left: list[int]) -> None:
    """Raise unless all ranks are alive and none of them left."""
    heart.check()
    if left:
        raise LamellaError(f"rank {left[0]} ended before all ranks were ready")
