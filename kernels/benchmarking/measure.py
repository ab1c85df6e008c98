"""One case timed: our implementations, after their check, and the peers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch

from kernels.benchmarking.excerpt import check_last_rows, has_long_prefill
from kernels.benchmarking.peers import peers
from kernels.benchmarking.timing import Timing, time_call
from kernels.case_inputs import Case
from kernels.op import Op, Yardstick
from kernels.override import override
from kernels.own import is_own, load_own
from kernels.processes import in_words


@dataclass(frozen=True)
class Measured:
    """`impl` timed on a case, or why it was not: `refused` if its check is red or it raised.
    `moves` is the case whose bytes it moves, if not its own."""

    op: str
    case: str
    impl: str
    peer: bool
    timing: Timing | None = None
    refused: str | None = None
    moves: Case | None = None

    def json(self, op: Op, case: Case, copy: float) -> dict[str, object]:
        """With what the case moves and computes; `copy`: the copy's bytes a second."""
        fields: dict[str, object] = {
            "op": self.op,
            "case": self.case,
            "impl": self.impl,
            "peer": self.peer,
        }
        if self.timing is None:
            return {**fields, "refused": self.refused}
        seconds = self.timing.median_us * 1e-6
        moved = op.bytes_moved(self.moves or case)
        rate = moved / seconds
        return {
            **fields,
            **asdict(self.timing),
            "gb_per_s": rate / 1e9,
            "fraction_of_copy": rate / copy,
            "tflop_per_s": op.flops(case) / seconds / 1e12,
            "flop_per_byte": op.flops(case) / moved,
        }


def measure(
    op: Op,
    case: Case,
    impls: Sequence[str],
    device: str,
    *,
    like: str = "reference",
    seconds: float = 0.3,
    with_peers: bool = True,
    checked: bool = True,
) -> Iterator[Measured]:
    """Check (if `checked`) and time each of `impls`, then the peers."""
    with torch.inference_mode():
        why = red_impls(op, case, impls, device, like) if checked else {}
        inputs = op.make_inputs(case, device, 0)
        for impl in impls:
            if impl in why:
                yield Measured(op.name, case.name, impl, False, refused=why[impl])
                continue
            try:
                own = load_own(impl) if is_own(impl) else None
                call = op.bind(inputs, impl if own is None else like)
                with override(op.name, own) if own is not None else nullcontext():
                    timing = time_call(call, device, seconds)
            except Exception as error:  # whatever a kernel under work may raise
                yield Measured(op.name, case.name, impl, False, refused=in_words(error))
            else:
                yield Measured(op.name, case.name, impl, False, timing)
        for peer in peers(op.name, case, inputs) if with_peers else ():
            try:
                timing = time_call(peer.prepare(), device, seconds)
            except Exception as error:  # a peer that does not take such inputs
                yield Measured(op.name, case.name, peer.name, True, refused=in_words(error))
            else:
                yield Measured(op.name, case.name, peer.name, True, timing, moves=peer.moves)


def red_impls(op: Op, case: Case, impls: Sequence[str], device: str, like: str) -> dict[str, str]:
    """Those of `impls` whose check on the case is red, with the reason. Where it has a stand-in,
    that is checked, and on a GPU a long prefill's last rows."""
    yardstick = Yardstick(op, case.stand_in or case, device)
    why: dict[str, str] = {}
    for impl in impls:
        try:
            own = load_own(impl) if is_own(impl) else None
            base = impl if own is None else like
            verdicts = yardstick.measure(base, own)
            if has_long_prefill(op, case, device):
                verdicts.append(check_last_rows(op, case, base, device, own))
        except Exception as error:  # whatever a kernel under work may raise
            why[impl] = in_words(error)
            continue
        for verdict in verdicts:
            if not verdict.ok:
                why[impl] = (
                    f"its check is red: {verdict.output} is off by {verdict.max_error:.1e} "
                    f"(mean {verdict.mean_error:.1e}), of {verdict.max_budget:.1e} "
                    f"(mean {verdict.mean_budget:.1e})"
                )
    return why
