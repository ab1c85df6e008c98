"""What can go wrong between stages; input errors are those of `kernels.errors`."""

from __future__ import annotations

from typing import NoReturn

from kernels.errors import LamellaError


class BridgeError(LamellaError):
    """A hand-over between two stages delivered something other than what was sent."""


class StageError(LamellaError):
    """A stage failed in the middle of a call, and every stage's cache is as before that call.

    Except for truncate, release and reset: these are tried on every stage, and a stage that fails
    keeps what it held while the others have changed. The sequence must then be released, or the
    pipeline reset, before it is used again.

    Attributes:
        stage: index of the stage that failed first.
        operation: what it was doing ("prefill_tokens", "decode_hidden", "logits", "send", ...).
        microbatch: which microbatch of the call, from 0; None where a call has none.
        cause: the original exception, also chained as `__cause__`.
    """

    def __init__(
        self, stage: int, operation: str, cause: BaseException, microbatch: int | None = None
    ) -> None:
        where = "" if microbatch is None else f" (microbatch {microbatch})"
        super().__init__(
            f"stage {stage} failed in {operation}{where}: {type(cause).__name__}: {cause}"
        )
        self.stage = stage
        self.operation = operation
        self.microbatch = microbatch
        self.cause = cause

    def throw(self) -> NoReturn:
        """Raise what callers are told: this, or that a process is gone."""
        if isinstance(self.cause, RankLostError):
            raise self.cause
        raise self from self.cause


class RankLostError(LamellaError):
    """A process of a distributed pipeline died, was stopped, or cannot be reached any more.

    Nothing can be computed without it: every call under way fails with this, and so does every
    later one. Under `torchrun --max-restarts` all processes are started anew.

    Attributes:
        rank: of the process, which is the index of its stage.
        host: name of its machine.
    """

    def __init__(self, rank: int, host: str, why: str) -> None:
        super().__init__(f"rank {rank} (host {host}) {why}")
        self.rank = rank
        self.host = host
