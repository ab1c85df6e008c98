"""Any sequence of calls, good, bad and failing, keeps a split pipeline in step with a whole one.

Invariants when nothing is under way: all stages hold the same lengths, which are those of a plain
model of the calls; no block is lost. Always: logits equal the whole model's, bit for bit, also of
steps and chunks that were sent without waiting.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kernels.errors import CapacityError
from model.cache import blocks_for
from model.config import LlamaConfig
from model.stage import DecodeRow
from pipeline.candidates import Arrangement
from pipeline.errors import StageError
from pipeline.job import Call
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.modes import LlamaPipelineMode
from pipeline.schedule import plan_decode
from pipeline.work import Answer, Decode, Piece, Prefill, Work
from tests.devices import DEVICE
from tests.pipeline.fake_stage import Fault
from tests.pipeline.random_model import RandomModel

LAYERS, VOCAB, LONGEST, KV_TOKENS = 3, 11, 20, 160
IDS = [f"s{number}" for number in range(24)]
SUBSETS = st.sets(st.sampled_from(IDS), min_size=1) | st.just(set(IDS))
MODES = st.sampled_from(list(LlamaPipelineMode))
CONFIG = LlamaConfig(
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=VOCAB,
    max_position_embeddings=LONGEST,
)


class PipelineMachine(RuleBasedStateMachine):
    """A split pipeline, a whole one that never fails, and the lengths that both should have."""

    impl = "cpu"

    def __init__(self) -> None:
        super().__init__()
        self.lengths: dict[str, int] = {}
        self.reserved: dict[str, int] = {}  # blocks
        self.split: LlamaPipeline | None = None
        self.whole: LlamaPipeline | None = None
        self.aloft: deque[tuple[Call, torch.Tensor]] = deque()  # and what each should answer

    @initialize(
        splits=st.sampled_from([[1, 2], [2, 1], [1, 1, 1]]),
        mode=MODES,
        kv_dtype=st.sampled_from(["fp32", "fp16", "bf16", "int8"]),
        dtype=st.sampled_from(["fp32", "bf16"]),
        block_size=st.integers(1, 6),
    )
    def build(
        self, splits: list[int], mode: str, kv_dtype: str, dtype: str, block_size: int
    ) -> None:
        model = RandomModel(CONFIG, 3, dtype, kv_dtype, block_size, self.impl)
        self.split = model.pipeline(splits, mode, kv_tokens=KV_TOKENS)
        self.whole = model.pipeline([LAYERS], kv_tokens=KV_TOKENS)
        self.block_size = block_size

    def teardown(self) -> None:
        for pipeline in (self.split, self.whole):
            if pipeline is not None:
                pipeline.close()

    # What should be

    @property
    def num_blocks(self) -> int:
        return blocks_for(KV_TOKENS, self.block_size)

    def held(self, seq_id: str) -> int:
        used = blocks_for(self.lengths.get(seq_id, 0), self.block_size)
        return max(used, self.reserved.get(seq_id, 0))

    def free(self) -> int:
        return self.num_blocks - sum(self.held(seq_id) for seq_id in self.lengths)

    def fits(self, appends: dict[str, int]) -> bool:
        needed = 0
        for seq_id, count in appends.items():
            total = self.lengths.get(seq_id, 0) + count
            if total > LONGEST:
                return False
            needed += max(0, blocks_for(total, self.block_size) - self.held(seq_id))
        return needed <= self.free()

    def append(self, appends: dict[str, int]) -> None:
        for seq_id, count in appends.items():
            self.lengths[seq_id] = self.lengths.get(seq_id, 0) + count

    def length(self, seq_id: str) -> int:
        return self.lengths.get(seq_id, 0)

    def batch(self, ids: set[str], token: int) -> list[tuple[str, int, int]]:
        return [
            (seq_id, (token + row) % VOCAB, self.lengths.get(seq_id, 0))
            for row, seq_id in enumerate(sorted(ids))
        ]

    def on_both(self, name: str, *arguments: Any) -> None:
        for pipeline in (self.split, self.whole):
            getattr(pipeline, name)(*arguments)

    # Calls

    @rule(seq_id=st.sampled_from(IDS), count=st.integers(1, 12), token=st.integers(0, VOCAB - 1))
    def prefill(self, seq_id: str, count: int, token: int) -> None:
        """Of a new sequence or one that is there."""
        tokens = [(token + 3 * place) % VOCAB for place in range(count)]
        if not self.fits({seq_id: count}):
            with pytest.raises(CapacityError):
                self.split.prefill(seq_id, tokens)
            return
        assert torch.equal(self.split.prefill(seq_id, tokens), self.whole.prefill(seq_id, tokens))
        self.append({seq_id: count})

    @rule(ids=SUBSETS, token=st.integers(0, VOCAB - 1), greedy=st.booleans())
    def decode(self, ids: set[str], token: int, greedy: bool) -> None:
        """Of any subset, new sequences among them."""
        batch = self.batch(ids, token)
        if not self.fits(dict.fromkeys(ids, 1)):
            with pytest.raises(CapacityError):
                self.split.decode_batch(batch)
            return
        got = self.split.decode_greedy(batch) if greedy else self.split.decode_batch(batch)
        mode, stages = self.split.placement.mode, len(self.split.stages)
        size = plan_decode(mode, stages, len(batch)).microbatch_size
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        expected = torch.cat([self.whole.decode_batch(part) for part in parts])
        assert torch.equal(got, expected.argmax(1) if greedy else expected)
        self.append(dict.fromkeys(ids, 1))

    @rule(seq_id=st.sampled_from(IDS), length=st.integers(0, LONGEST))
    def truncate(self, seq_id: str, length: int) -> None:
        self.on_both("truncate_kv", seq_id, length)
        if seq_id in self.lengths:
            self.lengths[seq_id] = min(length, self.lengths[seq_id])

    @rule(seq_id=st.sampled_from(IDS))
    def release(self, seq_id: str) -> None:
        self.on_both("release", seq_id)
        self.lengths.pop(seq_id, None)
        self.reserved.pop(seq_id, None)

    @rule(seq_id=st.sampled_from(IDS), count=st.integers(0, LONGEST))
    def prepare(self, seq_id: str, count: int) -> None:
        blocks = blocks_for(count, self.block_size)
        if max(0, blocks - self.held(seq_id)) > self.free():
            with pytest.raises(CapacityError):
                self.split.prepare(seq_id, count)
            return
        self.on_both("prepare", seq_id, count)
        self.lengths.setdefault(seq_id, 0)
        self.reserved[seq_id] = max(blocks, self.reserved.get(seq_id, 0))

    @rule()
    def reset(self) -> None:
        self.on_both("reset")
        self.lengths.clear()
        self.reserved.clear()

    @rule(tokens=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=LONGEST))
    def score(self, tokens: list[int]) -> None:
        if self.fits({"another": len(tokens)}):
            assert torch.equal(self.split.score(tokens), self.whole.score(tokens))

    @precondition(lambda self: self.lengths)
    @rule(ids=SUBSETS, off=st.sampled_from([-1, 1, 5]))
    def bad_position(self, ids: set[str], off: int) -> None:
        *good, (seq_id, token, position) = self.batch(ids, 0)
        with pytest.raises(ValueError, match="its position must be"):
            self.split.decode_batch([*good, (seq_id, token, position + off)])

    # Work that is sent without waiting; calls and chores come in between

    def launch(self, work: Work) -> Call:
        expected = self.whole.engine.launch([work])
        self.whole.engine.land(expected)
        call = self.split.engine.launch([work])
        self.aloft.append((call, expected.answers()))
        return call

    def land_all(self) -> None:
        while self.aloft:
            self.land_next()

    def land_next(self) -> None:
        call, expected = self.aloft.popleft()
        self.split.engine.land(call)
        assert torch.equal(call.answers(), expected)

    @rule(
        parts=st.dictionaries(st.sampled_from(IDS), st.integers(1, 6), min_size=1, max_size=3),
        ends=st.booleans(),
        token=st.integers(0, VOCAB - 1),
    )
    def send_chunks(self, parts: dict[str, int], ends: bool, token: int) -> None:
        """Several sequences' chunks in one, or the next chunk of one that is under way."""
        pieces = [
            Piece(seq_id, [(token + n) % VOCAB for n in range(count)], self.length(seq_id), ends)
            for seq_id, count in parts.items()
        ]
        work = Prefill(pieces, Answer.LOGITS)
        if not self.fits(parts):
            with pytest.raises(CapacityError):
                self.split.engine.launch([work])
            return
        self.launch(work)
        self.append(parts)

    @rule(ids=SUBSETS, token=st.integers(0, VOCAB - 1), groups=st.integers(1, 4))
    def send_steps(self, ids: set[str], token: int, groups: int) -> None:
        """A step of every group of some sequences."""
        if not self.fits(dict.fromkeys(ids, 1)):
            return
        for rows in grouped(self.batch(ids, token), groups):
            self.launch(Decode(rows, Answer.LOGITS))
        self.append(dict.fromkeys(ids, 1))

    @precondition(lambda self: self.aloft)
    @rule()
    def land(self) -> None:
        self.land_next()

    @rule(mode=MODES, groups=st.none() | st.integers(1, 5))
    def change_mode(self, mode: LlamaPipelineMode, groups: int | None) -> None:
        """Another pipeline goes on with the same stages."""
        self.land_all()
        stages, former = self.split.stages, self.split
        placement = replace(former.placement, mode=mode)
        if mode is not LlamaPipelineMode.CONTINUOUS:
            groups = None
        self.split = LlamaPipeline(stages, placement, threads=1, groups=groups)
        former.close()

    @rule(arrangement=st.sampled_from(list(Arrangement)))
    def arrange(self, arrangement: Arrangement) -> None:
        """The stages share the machine in another way, while work is under way."""
        self.split.engine.arrange(arrangement)

    # Failures

    @rule(
        data=st.data(),
        ids=SUBSETS,
        late=st.booleans(),
        head=st.booleans(),
        groups=st.integers(1, 4),
    )
    def failing_step(
        self, data: st.DataObject, ids: set[str], late: bool, head: bool, groups: int
    ) -> None:
        """Of several groups' steps under way one fails; its sequences go, all others go on."""
        self.land_all()
        if not self.fits(dict.fromkeys(ids, 1)):
            return
        batches = grouped(self.batch(ids, 2), groups)
        number = data.draw(st.integers(0, len(batches) - 1))
        stages = self.split.stages
        index = len(stages) - 1 if head else data.draw(st.integers(0, len(stages) - 1))
        operation = "logits" if head else f"decode_{'hidden' if index else 'tokens'}"
        self.append(dict.fromkeys(ids, 1))
        with failing(stages[index], operation, number, late):
            calls = [self.launch(Decode(rows, Answer.LOGITS)) for rows in batches]
            calls[-1].wait()
        broken, _ = self.aloft[number]
        del self.aloft[number]
        self.split.engine.land(broken)
        with pytest.raises(StageError, match=f"stage {index} failed in {operation}"):
            broken.answers()
        gone = [row.id for row in batches[number]]
        self.split.engine.let_go(gone)
        for seq_id in gone:
            self.whole.release(seq_id)
            self.lengths.pop(seq_id, None)
            self.reserved.pop(seq_id, None)

    @rule(
        data=st.data(),
        ids=SUBSETS,
        late=st.booleans(),
        prefill=st.booleans(),
        head=st.booleans(),
        number=st.integers(0, 2),
    )
    def failing_stage(
        self, data: st.DataObject, ids: set[str], late: bool, prefill: bool, head: bool, number: int
    ) -> None:
        """Some operation of some stage fails, before or after it wrote, in some microbatch."""
        self.land_all()
        stages = self.split.stages
        index = len(stages) - 1 if head else data.draw(st.integers(0, len(stages) - 1))
        appends = {min(ids): 7} if prefill else dict.fromkeys(ids, 1)
        if not self.fits(appends):
            return
        microbatches = 1
        if not prefill:
            plan = plan_decode(self.split.placement.mode, len(stages), len(ids))
            microbatches = plan.microbatch_count
        what = "prefill" if prefill else "decode"
        operation = "logits" if head else f"{what}_{'hidden' if index else 'tokens'}"
        number %= microbatches
        broken = failing(stages[index], operation, number, late)
        with broken, pytest.raises(StageError) as caught:  # noqa: PT012
            if prefill:
                self.split.prefill(min(ids), list(range(7)))
            else:
                self.split.decode_batch(self.batch(ids, 1))
        error = caught.value
        assert (error.stage, error.operation) == (index, operation)
        assert error.microbatch == number

    # What must hold

    @invariant()
    def stages_agree(self) -> None:
        if self.split is None or self.aloft:
            return
        self.split.engine.tidy()  # waits for releases that were sent
        assert self.split.engine.ledger.ids() == self.split.stages[0].cache.sequence_ids()
        for stage in (*self.split.stages, *self.whole.stages):
            ids = stage.cache.sequence_ids()
            assert {seq_id: stage.cache_len(seq_id) for seq_id in ids} == self.lengths
            assert stage.cache.free_blocks == self.free()


def grouped(batch: list[tuple[str, int, int]], groups: int) -> list[list[DecodeRow]]:
    """A batch in so many parts, or fewer."""
    rows = [DecodeRow(*row) for row in batch]
    size = -(-len(rows) // groups)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class failing:
    """Makes the `number`-th call of a stage's operation fail."""

    def __init__(self, stage: Any, operation: str, number: int, late: bool) -> None:
        self.stage, self.operation, self.number, self.late = stage, operation, number, late

    def __enter__(self) -> None:
        whole, calls = getattr(self.stage, self.operation), iter(range(100))

        def call(*arguments: Any) -> torch.Tensor:
            broken = next(calls) == self.number
            if broken and not self.late:
                raise Fault("early")
            result = whole(*arguments)
            if broken:
                raise Fault("late")
            return result

        setattr(self.stage, self.operation, call)

    def __exit__(self, *_: object) -> None:
        delattr(self.stage, self.operation)


class TritonMachine(PipelineMachine):
    """The same with Triton's kernels; few steps where they are interpreted."""

    impl = "triton"


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

TestPipelineMachine = PipelineMachine.TestCase
TestPipelineMachine.settings = settings(
    max_examples=50, stateful_step_count=25, deadline=None, suppress_health_check=SLOW
)

TestTritonMachine = TritonMachine.TestCase
TestTritonMachine.settings = settings(
    max_examples=50 if DEVICE == "cuda" else 2,
    stateful_step_count=25 if DEVICE == "cuda" else 7,
    deadline=None,
    suppress_health_check=SLOW,
)
