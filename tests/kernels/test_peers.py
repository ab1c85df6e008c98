"""Peers compute what our operators compute: a figure beside another operation would be none."""

from __future__ import annotations

import pytest
import torch

from kernels import OPS, get_op
from kernels.benchmarking.measure import measure
from kernels.benchmarking.peers import peers
from kernels.case_inputs import Case

SMALL = {
    name: [case for case in op.cases if not case.bench and "bf16" in case.name][:3]
    for name, op in OPS.items()
}
KV = ("bf16", "int8")
ROWS = {"decode": [(1, 54), (1, 3)], "prefill": [(33, 33)] * 2, "chunked": [(5, 54), (5, 97)]}
SMALL["attention"] = [
    Case(
        f"{kind}-{kv}",
        {
            "rows": tuple(rows),
            "heads": (4, 2, 16),
            "block_size": 5,
            "kv_dtype": kv,
            "dtype": "bf16",
            "window": None,
            "softcap": None,
        },
    )
    for kind, rows in ROWS.items()
    for kv in KV
]


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(n, case, id=f"{n}-{case.name}") for n, cases in SMALL.items() for case in cases],
)
def test_peers_agree(name: str, case: Case) -> None:
    op = get_op(name)
    inputs = op.make_inputs(case, "cpu", 0)
    ours = op.run(inputs, "reference")
    for peer in peers(name, case, inputs):
        raw = peer.prepare()()
        if name == "attention":
            raw = raw.transpose(1, 2).flatten(0, 1)
        if name == "rms_norm" and inputs["residual"] is None:
            raw = raw[0]
        for output, theirs in op.collect(inputs, raw).items():
            torch.testing.assert_close(theirs.float(), ours[output].float(), rtol=0.05, atol=0.05)


def test_sixteen_bits_read_for_an_int8_cache_count_as_sixteen() -> None:
    op = get_op("attention")
    wide, int8 = (next(c for c in SMALL["attention"] if c.name == f"decode-{kv}") for kv in KV)
    (_, found) = measure(op, int8, ["reference"], "cpu", seconds=0.0, checked=False)
    row = found.json(op, int8, copy=1e9)
    assert found.peer
    seconds = row["median_us"] * 1e-6
    assert row["gb_per_s"] * 1e9 * seconds == pytest.approx(op.bytes_moved(wide))
    assert row["flop_per_byte"] == op.flops(int8) / op.bytes_moved(wide)
    assert op.bytes_moved(int8) < op.bytes_moved(wide)


def test_every_operator_but_one_has_a_peer() -> None:
    without = [n for n, op in OPS.items() if not any(_names(n, case) for case in SMALL[n])]
    assert without == ["rope_append"]


def _names(name: str, case: Case) -> list[str]:
    return [peer.name for peer in peers(name, case, get_op(name).make_inputs(case, "cpu", 0))]
