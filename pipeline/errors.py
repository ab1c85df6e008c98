"""What can go wrong between stages; input errors are those of `kernels.errors`."""

from __future__ import annotations

from kernels.errors import LamellaError


class BridgeError(LamellaError):
    """A hand-over between two stages delivered something other than what was sent."""


class StageError(LamellaError):
    """A stage failed in the middle of a call, and every stage's cache is as before that call.

    Attributes:
        stage: index of the stage that failed first.
        operation: what it was doing ("prefill_tokens", "decode_hidden", "logits", "send", ...).
        microbatch: which microbatch of the call, from 0.
        cause: the original exception, also chained as `__cause__`.
    """

    def __init__(
        self, stage: int, operation: str, cause: BaseException, microbatch: int = 0
    ) -> None:
        super().__init__(
            f"stage {stage} failed in {operation} (microbatch {microbatch}): "
            f"{type(cause).__name__}: {cause}"
        )
        self.stage = stage
        self.operation = operation
        self.microbatch = microbatch
        self.cause = cause
