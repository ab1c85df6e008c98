"""Processes against threads of one: the same tokens and logits, the same errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from model.sampling import SamplingParams
from pipeline import LlamaPipeline
from tests.pipeline.distributed.launching import Ranks

PROMPTS = [[5, 6, 7], [9], list(range(40, 75)), [300, 301], [8] * 20]
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "seed": (1 << 64) - 3}


def case(**more: Any) -> dict[str, Any]:
    """One run of `rank_main.generate`."""
    load = {"threads": 1, "kv_dtype": "int8"} | more.pop("load")
    return {"do": "generate", "prompts": PROMPTS, "tokens": 12, "load": load} | more


def expected(one: dict[str, Any], stages: int) -> list[list[int]]:
    """What one process generates."""
    with LlamaPipeline.from_pretrained(**one["load"] | {"stages": stages}) as pipe:
        sampling = SamplingParams(**one.get("sampling", {}))
        result = pipe.generate(one["prompts"], max_new_tokens=one["tokens"], sampling=sampling)
        return [done.tokens for done in result.completions]


def test_two_processes_compute_what_one_does() -> None:
    cases = [
        case(load={"mode": "batch"}),
        case(load={"mode": "continuous", "groups": 3}, sampling=SAMPLED),
        case(load={"mode": "overlapped", "splits": "3,1", "kv_dtype": "fp16"}),
        {"do": "calls", "load": {"threads": 1, "mode": "batch", "stages": 2}},
        {
            "do": "faults",
            "prompts": PROMPTS,
            "load": {"threads": 1, "mode": "continuous", "groups": 2},
            "fault": {"rank": 1, "operation": "decode_hidden", "calls": [0, 3]},
        },
        {"do": "closed", "load": {"threads": 1, "mode": "batch"}},
    ]
    with Ranks(cases) as ranks:
        *generated, by_hand, faulty, refused = ranks.results()
    for one, got in zip(cases, generated, strict=False):
        assert got == expected(one, 2)
    check_calls(by_hand)
    check_faults(faulty)
    assert "Prepare cannot be put into 64-bit words" in refused[0]
    assert "the pipeline is closed" in refused[1]


def check_calls(told: dict[str, Any]) -> None:
    with LlamaPipeline.from_pretrained(threads=1, mode="batch", stages=2) as pipe:
        first, scored, both, again = map(torch.tensor, told["logits"])
        assert torch.equal(first, pipe.prefill("a", [1, 2, 3]))
        assert torch.equal(scored, pipe.score([1, 2, 3]))
        assert torch.equal(both, pipe.decode_batch([("a", 4, 3), ("b", 5, 0)]))
        pipe.truncate_kv("a", 2)
        assert torch.equal(again, pipe.decode_batch([("a", 3, 2), ("b", 6, 1)]))
        here = pipe.cache_metrics_snapshot()["pipeline_decode"]
    assert told["ids"]
    assert told["bytes"] == here["host_bridge_bytes_total"]
    assert all(us > 0 for us in told["stage_us"])
    assert told["bridge"] == "distributed"
    assert told["stages_seen"] == [0, 1]
    assert 0 < told["bubbles"] < 1
    assert told["threads"] == [1, 1]
    assert "bridge=distributed" in told["repr"]


def check_faults(told: list[Any]) -> None:
    failed, traced, token, length, completions = told
    message = "stage 1 failed in decode_hidden (microbatch 0): MemoryError: no room  for it"
    assert failed == [1, "decode_hidden", "MemoryError", message]
    assert traced, "the remote traceback is a note of the cause"
    with LlamaPipeline.from_pretrained(threads=1, stages=2, mode="batch") as pipe:
        pipe.prefill("a", [1, 2, 3])
        assert token == int(pipe.decode("a", 4, 3).argmax())
        right = pipe.generate(PROMPTS, max_new_tokens=8).completions
    assert length == 4
    reasons = [reason for _, reason in completions]
    assert 0 < reasons.count("error") < len(PROMPTS), "one group fails, the other goes on"
    for (tokens, reason), done in zip(completions, right, strict=True):
        assert tokens == (done.tokens[: len(tokens)] if reason == "error" else done.tokens)


def test_three_processes_compute_what_one_does() -> None:
    cases = [
        case(load={"mode": "continuous"}),
        case(load={"mode": "batch", "splits": "1,2,1"}, sampling=SAMPLED),
    ]
    with Ranks(cases, size=3) as ranks:
        for one, got in zip(cases, ranks.results(), strict=True):
            assert got == expected(one, 3)


def test_a_failure_outside_a_stage_is_told_to_all_with_its_cause() -> None:
    fault = {"rank": 2, "operation": "send", "calls": [30]}
    one = case(load={"mode": "continuous"}, do="until_lost", fault=fault)
    with Ranks([one], size=3) as ranks:
        ranks.wait_until_running()
        driver, middle, last = ranks.ends(range(3))
    (errors,) = json.loads(driver[1])
    for text in (*errors, middle[2], last[2]):
        assert "rank 2 (host" in text
        assert "failed: MemoryError: no room" in text
    assert [driver[0], middle[0], last[0]] == [1, 1, 1]
    assert "Traceback" in last[2]


@pytest.mark.parametrize("size", [2])
def test_what_is_wrong_on_one_rank_is_said_on_all(size: int) -> None:
    wrong = [
        ({"load": {"stages": 3}}, "3 stages were asked for, but torchrun started 2 processes"),
        ({"only": {"1": {"block_size": 32}}}, "options.block_size of rank 1"),
        ({"only": {"1": {"path": "/nowhere"}}}, "/nowhere"),
        ({"only": {"1": {"stages": 4}}}, "4 stages were asked for"),
    ]
    with Ranks([one | {"do": "generate"} for one, _ in wrong], size) as ranks:
        ends = ranks.ends(range(size))
    for code, _, err in ends:
        assert code == 0, "rank_main goes on after errors"
        for _, message in wrong:
            assert message in err
    assert "it is 16" in ends[0][2]
    assert "rank 1 (host" in ends[0][2]


def test_what_fails_before_a_rank_joins_is_told_to_the_others() -> None:
    command = ("pipeline", "generate", "--prompts-file", "/nowhere.txt")
    with Ranks([], module=command) as ranks:
        driver, other = ranks.ends(range(2))
    assert (driver[0], other[0]) == (1, 1)
    assert driver[2] == "error: /nowhere.txt: No such file or directory\n"
    assert "rank 0 (host" in other[2]
    assert "/nowhere.txt" in other[2]
