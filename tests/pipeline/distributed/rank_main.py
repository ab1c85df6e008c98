"""What the processes of these tests run: `python -m tests.pipeline.distributed.rank_main CASES`.

CASES is JSON, a list of {"load": options, "do": name of a function below, ...}. All ranks go
through it; rank 0 prints the list of results as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from kernels.errors import LamellaError
from model.sampling import SamplingParams
from model.stage import LlamaStage
from pipeline import LlamaPipeline, RankLostError, StageError
from pipeline.chores import Prepare, Reset
from pipeline.distributed import serve
from pipeline.distributed.answers import AnswerSender
from pipeline.job import Call

RANK = int(os.environ["RANK"])


def generate(pipe: LlamaPipeline, case: dict[str, Any]) -> Any:
    """Tokens of each prompt."""
    sampling = SamplingParams(**case.get("sampling", {}))
    result = pipe.generate(case["prompts"], max_new_tokens=case["tokens"], sampling=sampling)
    return [done.tokens for done in result.completions]


def calls(pipe: LlamaPipeline, case: dict[str, Any]) -> Any:
    """Logits of calls by hand, and whether all that was released is gone."""
    first = pipe.prefill("é\ud800", [1, 2, 3])
    scored = pipe.score([1, 2, 3])
    pipe.prepare("b", 40)
    both = pipe.decode_batch([("é\ud800", 4, 3), ("b", 5, 0)])
    pipe.truncate_kv("é\ud800", 2)
    again = pipe.decode_batch([("é\ud800", 3, 2), ("b", 6, 1)])
    pipe.release("b")
    snapshot = pipe.cache_metrics_snapshot()
    return {
        "logits": [x.tolist() for x in (first, scored, both, again)],
        "ids": pipe.sequence_ids() == ["é\ud800"],
        "stage_us": snapshot["pipeline_decode"]["stage_us_total"],
        "bytes": snapshot["pipeline_decode"]["host_bridge_bytes_total"],
        "bridge": snapshot["selected_stage_bridge"],
        "stages_seen": sorted({span.stage for span in pipe.timeline().spans}),
        "bubbles": pipe.timeline().bubble_share,
        "threads": pipe.threads,
        "repr": repr(pipe),
    }


def faults(pipe: LlamaPipeline, case: dict[str, Any]) -> Any:
    """A stage elsewhere fails: what is said of it, and that all else goes on."""
    pipe.prefill("a", [1, 2, 3])
    told: list[Any] = []
    for _ in range(2):  # the first of these fails, see `break_stage`
        try:
            told.append(pipe.decode("a", 4, 3).argmax().item())
        except StageError as error:
            notes = "".join(getattr(error.cause, "__notes__", []))
            told.append([error.stage, error.operation, type(error.cause).__name__, str(error)])
            told.append("in broken" in notes)
    told.append(pipe.cache_len("a"))
    result = pipe.generate(case["prompts"], max_new_tokens=8, on_error="report")
    told.append([[done.tokens, done.finish_reason] for done in result.completions])
    return told


def closed(pipe: LlamaPipeline, case: dict[str, Any]) -> Any:
    """Numbers that fit into no order, and a job that comes after the end."""
    pipe.prefill("a", [1, 2])
    pipe.truncate_kv("a", 1 << 70)
    line = pipe._engine.line
    told = []
    for task in (Prepare("b", 1 << 70), Reset()):
        call = Call(2)
        line.submit(call.job(1 << 20, task))
        call.wait()
        told.append(str(call.failure))
        pipe.close()
    return told


def until_lost(pipe: LlamaPipeline, case: dict[str, Any]) -> Any:
    """Generate until a rank is lost; the error, and those of later calls."""
    print("running", flush=True)
    errors = []
    try:
        while True:
            pipe.generate(case["prompts"], max_new_tokens=64)
    except RankLostError as error:
        errors.append(str(error))
    for call in (
        lambda: pipe.prefill("x", [1]),
        lambda: pipe.reset(),
        lambda: pipe.decode("y", 1, 0),
    ):
        try:
            call()
        except LamellaError as error:
            errors.append(str(error))
    return errors


def break_stage(fail_on: list[int], operation: str) -> None:
    """Let some calls of an operation raise, counted from 0: a stage's, or `send` of an answer."""
    owner: type = AnswerSender if operation == "send" else LlamaStage
    whole = getattr(owner, operation)
    count = iter(range(1 << 30))

    def broken(self: object, *args: Any) -> Any:
        if next(count) in fail_on:
            raise MemoryError("no room\0 for it")
        return whole(self, *args)

    setattr(owner, operation, broken)


def main() -> None:
    results = []
    for case in json.loads(sys.argv[1]):
        if (fault := case.get("fault")) and fault["rank"] == RANK:
            break_stage(fault["calls"], fault["operation"])
        load = case.get("load", {}) | (case.get("only", {}).get(str(RANK), {}))
        try:
            if RANK:
                serve(**load)
            else:
                with LlamaPipeline.from_pretrained(**load) as pipe:
                    results.append(globals()[case["do"]](pipe, case))
        except LamellaError as error:
            print(f"error of rank {RANK}: {error}", file=sys.stderr, flush=True)
            results.append(str(error))
    if RANK == 0:
        print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
