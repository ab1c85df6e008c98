"""`LlamaPipeline`: a Llama split into stages, used as if it were whole."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import torch

from kernels.errors import InvalidInputError
from model.config import LlamaConfig
from model.sampling import SamplingParams
from model.stage import DecodeRow, Progress
from model.tokenizer import Tokenizer
from pipeline.auto import AutoMode
from pipeline.bridges.opening import check_bridge, open_bridge
from pipeline.checks import check_stages, placement_of
from pipeline.crew import Crew
from pipeline.engine import PipelineEngine
from pipeline.explanation import Explanation
from pipeline.generation import GenerationResult, GenerationStream, run_to_end
from pipeline.hidden import PipelineHidden
from pipeline.interfaces import Stage
from pipeline.ledger import Ledger
from pipeline.line import Line, ThreadLine
from pipeline.live import LiveMetrics
from pipeline.loading import load_pieces
from pipeline.modes import LlamaPipelineMode, StageBridge, Transport
from pipeline.placement import Placement
from pipeline.profile import DecodeProfile, profile_enabled
from pipeline.splits import Splits
from pipeline.steering import Steering
from pipeline.timeline import Recorder, Timeline
from pipeline.validation import RESERVED, as_int, as_rows, as_tokens, check_id
from pipeline.work import Answer

if TYPE_CHECKING:
    from pipeline.distributed.request import LoadRequest
    from pipeline.distributed.world import World

POSITION = "llama-layer-split-pipeline"


class LlamaPipeline:
    """Stages of one model behind the operations of a whole one.

    Every call is a transaction: if it raises, on whichever stage, every stage's cache is as
    before. Only `truncate_kv`, `release` and `reset` are not undone: they are tried on every stage,
    and if one fails the sequence must be released, or the pipeline reset, before it is used again.
    A stage's failure is a `StageError`; bad input is an `InvalidInputError`, a lack of room a
    `CapacityError`, both raised before anything is written. Calls may come from any thread; they
    run one at a time.

    Args:
        stages: the model's stages, in order.
        placement: where they are and the mode; by default as they are, in mode "auto".
        threads: intra-op threads, for all stages or one number each. By default every stage gets
            all usable cores while the stages run in turn, and they share them while they run at
            once.
        bridge: "auto", "host", "cuda_device_staged" or "cuda_peer".
        bridge_dtype: of hidden states on their way: "fp32", or "bf16" with half the bytes.
        groups: of sequences in flight, for mode "continuous" alone; by default as many as stages.
        tokenizer: for `generate` from text.
        crew: the workers that the stages were loaded in; the pipeline closes them.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        placement: Placement | None = None,
        *,
        threads: int | Sequence[int] | None = None,
        bridge: str = "auto",
        bridge_dtype: str = "fp32",
        groups: int | None = None,
        tokenizer: Tokenizer | None = None,
        crew: Crew | None = None,
    ) -> None:
        stages = tuple(stages)
        if placement is None:
            placement = placement_of(stages)
        check_stages(stages, placement)
        check_bridge(bridge, [stage.device for stage in stages], bridge_dtype)
        _check_groups(groups, placement.mode)
        count, config = len(stages), stages[0].config
        if crew is None:
            crew = Crew.of(placement.mode, count, threads)
        try:
            devices = [stage.device for stage in stages]
            links = open_bridge(bridge, config.hidden_size, devices, bridge_dtype)
            links.probe()
        except BaseException:
            crew.close()
            raise
        recorder = Recorder(count)
        self._assemble(
            stages,
            placement,
            ThreadLine(stages, crew, links, recorder),
            Ledger.of(stages),
            links.name,
            recorder,
            groups,
            tokenizer,
        )

    def _assemble(
        self,
        stages: tuple[Stage, ...],
        placement: Placement,
        line: Line,
        ledger: Ledger,
        bridge: StageBridge,
        recorder: Recorder,
        groups: int | None,
        tokenizer: Tokenizer | None,
    ) -> None:
        """Everything above the line of stages, wherever they are."""
        mode, count, config = placement.mode, len(stages), stages[0].config
        self._closer = weakref.finalize(self, line.close)
        profile = DecodeProfile(profile_enabled())
        self._engine = PipelineEngine(config, mode, line, ledger, bridge, profile, recorder)
        auto = None
        if mode is LlamaPipelineMode.AUTO:
            auto = AutoMode(count, row_bytes=4 * config.hidden_size)
        self._steering = Steering(mode, count, self._engine.arrange, groups=groups, auto=auto)
        self._live = LiveMetrics(recorder)
        self._stages = stages
        self._placement = placement
        self._groups = groups
        self._tokenizer = tokenizer
        self._numbers = itertools.count()

    @classmethod
    def _over_ranks(cls, world: World, request: LoadRequest) -> LlamaPipeline:
        """The pipeline of the driver, whose other stages are in other processes."""
        from pipeline.distributed.driving import drive

        driving = drive(world, request)
        pipeline = cls.__new__(cls)
        pipeline._assemble(
            # The driver never asks a stage: of those elsewhere it has descriptions.
            cast("tuple[Stage, ...]", driving.stages),
            driving.placement,
            driving.line,
            driving.ledger,
            StageBridge.DISTRIBUTED,
            driving.recorder,
            request.groups,
            driving.tokenizer,
        )
        return pipeline

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str] | None = None,
        *,
        stages: int | None = None,
        splits: Splits | None = None,
        devices: Sequence[int | None] | str | None = None,
        kv_dtype: str = "auto",
        mode: LlamaPipelineMode | str | None = None,
        impl: str = "auto",
        bridge: str = "auto",
        bridge_dtype: str = "fp32",
        groups: int | None = None,
        threads: int | Sequence[int] | None = None,
        dtype: str = "auto",
        block_size: int = 16,
        kv_tokens: int | None = None,
        max_seq_len: int | None = None,
        cuda_graphs: bool = True,
        progress: Progress | None = None,
    ) -> LlamaPipeline:
        """Load a checkpoint in Hugging Face format, every stage in its own worker.

        In the processes of torchrun (two or more) each loads one stage, and rank 0 gets the
        pipeline; the others call `pipeline.distributed.serve` with the same options. With another
        bridge than "auto" or "distributed", every process has a whole pipeline of its own.

        Args:
            path: the checkpoint's folder; None is the bundled model.
            stages: how many, 1 unless `splits` or `devices` say otherwise. They are cut by weight
                and memory: the slowest one is as fast as it can be, embedding, head, sampling and
                KV pools counted.
            splits: "even" by layer count instead, or layer counts or ranges, see
                `Placement.from_splits`.
            devices: CUDA ordinals, one per stage; None (or "cpu" in text) is the default device.
            kv_dtype, impl, dtype, block_size, kv_tokens, max_seq_len, cuda_graphs: see
                `LlamaStage.load`.
            mode: "batch", "overlapped", "continuous", or "auto", the default, which takes
                whichever of them measurements say is fastest.
            bridge, bridge_dtype, groups, threads: see `LlamaPipeline`; "distributed", too.
            progress: told of every tensor read, with its bytes; called from the workers.

        Raises:
            InvalidInputError, UnsupportedError, CheckpointError: name what is wrong.
            CapacityError: no cut fits the devices' memory; names the stage and the bytes missing.
        """
        from pipeline.distributed.driving import world_for

        mode = LlamaPipelineMode.AUTO if mode is None else LlamaPipelineMode.parse(mode)
        _check_groups(groups, mode)
        if (world := world_for(bridge)) is not None:
            from pipeline.distributed.request import LoadRequest

            return cls._over_ranks(
                world,
                LoadRequest(
                    path,
                    stages=stages,
                    splits=splits,
                    devices=devices,
                    kv_dtype=kv_dtype,
                    mode=mode,
                    impl=impl,
                    bridge=bridge,
                    bridge_dtype=bridge_dtype,
                    groups=groups,
                    threads=threads,
                    dtype=dtype,
                    block_size=block_size,
                    kv_tokens=kv_tokens,
                    max_seq_len=max_seq_len,
                    cuda_graphs=cuda_graphs,
                    progress=progress,
                ),
            )
        pieces = load_pieces(
            path,
            stages=stages,
            splits=splits,
            devices=devices,
            mode=mode,
            impl=impl,
            threads=threads,
            bridge=bridge,
            bridge_dtype=bridge_dtype,
            progress=progress,
            stage_options={
                "kv_dtype": kv_dtype,
                "dtype": dtype,
                "block_size": block_size,
                "kv_tokens": kv_tokens,
                "max_seq_len": max_seq_len,
                "cuda_graphs": cuda_graphs,
            },
        )
        try:
            return cls(
                pieces.stages,
                pieces.placement,
                bridge=bridge,
                bridge_dtype=bridge_dtype,
                groups=groups,
                tokenizer=pieces.tokenizer,
                crew=pieces.crew,
            )
        except BaseException:
            pieces.crew.close()
            raise

    # Calls

    def prefill(self, seq_id: str, tokens: Iterable[int]) -> torch.Tensor:
        """Append tokens to a sequence; logits after the last of them, [V] float32.

        A sequence that is not known begins here; one that is goes on where it ended.
        """
        ids = as_tokens(tokens, self.config.vocab_size, f"sequence {check_id(seq_id)!r}")
        return self._engine.prefill(seq_id, ids, Answer.LOGITS)[0]

    def score(self, tokens: Iterable[int]) -> torch.Tensor:
        """Logits after each of T tokens, [T, V] float32; keeps no sequence."""
        ids = as_tokens(tokens, self.config.vocab_size, "the sequence to score")
        seq_id = self._own_id("score")
        try:
            return self._engine.prefill(seq_id, ids, Answer.LOGITS, all_rows=True, keep=False)
        finally:
            self._engine.tidy()

    def decode(self, seq_id: str, token: int, pos: int) -> torch.Tensor:
        """Append one token at position `pos`, the sequence's length; logits after it, [V]."""
        rows = self._rows([(seq_id, token, pos)])
        return self._engine.decode(rows, Answer.LOGITS, single=True)[0]

    def decode_batch(
        self, batch: Iterable[DecodeRow | tuple[str, int, int]], full_logits: bool = False
    ) -> torch.Tensor:
        """One token for each of B sequences, given as (id, token, position); logits [B, V] float32.

        No rows give an empty tensor and count as no call. A batch of one goes the way of `decode`
        unless `full_logits` is set, which asks for the batch's way whatever its size.
        """
        rows = self._rows(batch)
        if not rows:
            return torch.empty(0, self.config.vocab_size)
        single = len(rows) == 1 and not full_logits
        return self._engine.decode(rows, Answer.LOGITS, single=single)

    def decode_greedy(self, batch: Iterable[DecodeRow | tuple[str, int, int]]) -> torch.Tensor:
        """As `decode_batch`, but the most likely next tokens, [B] int64, ties to the lowest id."""
        rows = self._rows(batch)
        if not rows:
            return torch.empty(0, dtype=torch.int64)
        return self._engine.decode(rows, Answer.GREEDY, single=len(rows) == 1)

    # The cache

    def prepare(self, seq_id: str, max_tokens: int) -> None:
        """Reserve room for `max_tokens` positions of a sequence, on every stage or on none."""
        self._engine.prepare(check_id(seq_id), as_int(max_tokens, "max_tokens"))

    def cache_len(self, seq_id: str) -> int:
        """Positions that a sequence holds; 0 if it is unknown."""
        return self._engine.cache_len(check_id(seq_id))

    def kv_capacity(self) -> int:
        """Most positions that one sequence may hold: the least over the stages."""
        return self._engine.kv_capacity()

    def truncate_kv(self, seq_id: str, new_len: int) -> None:
        """Shorten a sequence; never lengthens, and leaves unknown ones alone."""
        self._engine.truncate(check_id(seq_id), as_int(new_len, "new_len"))

    def release(self, seq_id: str) -> None:
        """Forget a sequence and take its blocks back; leaves unknown ones alone."""
        self._engine.release(check_id(seq_id))

    def reset(self) -> None:
        """Forget all sequences. Streams of `generate` that are under way end with an error."""
        self._engine.reset()

    def sequence_ids(self) -> list[str]:
        """Known sequences, oldest first, without those of `generate`."""
        return [i for i in self._engine.sequence_ids() if not i.startswith(RESERVED)]

    def cache_metrics_snapshot(self) -> dict[str, Any]:
        """The pipeline's shape and decode statistics, ready for JSON."""
        return {
            "position": POSITION,
            "stage_count": len(self.stages),
            "stage_device_ordinals": self.placement.stage_device_ordinals,
            "transport": Transport.of(self.bridge).value,
            "selected_pipeline_mode": self.placement.mode.value,
            "selected_stage_bridge": self.bridge.value,
            "pipeline_hidden": {
                "dtype": PipelineHidden.DTYPE,
                "device": "host" if self.bridge is StageBridge.HOST else "backend_device",
                "layout": PipelineHidden.LAYOUT,
            },
            "pipeline_decode": self._engine.stats.json(),
            "pipeline_mode": self._steering.json(),
            "pipeline_live": self._live.json(),
            "kv_free_blocks": [self._engine.ledger.free_blocks(i) for i in range(len(self.stages))],
        }

    def explain(self) -> Explanation | None:
        """Why mode "auto" runs steps as it does; None in other modes, and before any step."""
        return self._steering.explain()

    def timeline(self, last_s: float | None = None) -> Timeline:
        """What every stage did when, over the last so many seconds of work, or all that is kept.

        Raises `InvalidInputError` unless `last_s` is above 0.
        """
        if last_s is not None and not last_s > 0:
            raise InvalidInputError(f"last_s is {last_s}; expected seconds above 0")
        timeline = self._engine.recorder.timeline()
        if last_s is None or last_s >= timeline.seconds:
            return timeline
        return timeline.between(timeline.seconds - last_s, timeline.seconds)

    # Text

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        max_new_tokens: int = 64,
        sampling: SamplingParams | None = None,
        stop: str | Sequence[str] = (),
        stop_token_ids: Sequence[int] | None = None,
        max_batch: int | None = None,
        prefill_chunk: int | None = None,
        add_special_tokens: bool = True,
        on_error: str = "raise",
    ) -> GenerationResult:
        """Continue prompts, as many at once as fit, and return them in their order.

        Args:
            prompts: a text or a list of token ids, or several of these.
            max_new_tokens: at most so many per prompt.
            sampling: greedy by default.
            stop: texts that end a completion, and are left out of it.
            stop_token_ids: tokens that end a completion; by default the model's own.
            max_batch: most sequences at once; 32 by default.
            prefill_chunk: most tokens of a prompt that go through the stages at once; 256 by
                default. Longer prompts go in chunks, so that others can decode in between.
            add_special_tokens: whether texts are encoded with the tokenizer's own, such as bos.
            on_error: "raise", or "report": a step that fails ends its own sequences, with
                `finish_reason` "error" and the `error` said, and all others go on.

        Raises:
            InvalidInputError: names what is wrong with an argument.
            CapacityError: a prompt and its new tokens can never fit, raised before any work; or do
                not fit beside what is held by then, which `on_error="report"` tells as its error.
        """
        return run_to_end(
            self.stream(
                prompts,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                stop=stop,
                stop_token_ids=stop_token_ids,
                max_batch=max_batch,
                prefill_chunk=prefill_chunk,
                add_special_tokens=add_special_tokens,
                on_error=on_error,
            )
        )

    def stream(
        self,
        prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        max_new_tokens: int = 64,
        sampling: SamplingParams | None = None,
        stop: str | Sequence[str] = (),
        stop_token_ids: Sequence[int] | None = None,
        max_batch: int | None = None,
        prefill_chunk: int | None = None,
        add_special_tokens: bool = True,
        on_error: str = "raise",
        drawn: Mapping[int, Sequence[int]] | None = None,
    ) -> GenerationStream:
        """As `generate`, as an iterator of `GenerationEvent`; bad input raises at once.

        `drawn` are tokens that an earlier run of the same prompts drew, by the prompt's index. They
        come again as events, and their completions go on as if nothing had come in between: what
        was finished is taken as it was, and what was not takes the same steps again.
        """
        return GenerationStream(
            self._engine,
            self._steering,
            self._tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            stop_token_ids=stop_token_ids,
            max_batch=max_batch,
            prefill_chunk=prefill_chunk,
            add_special_tokens=add_special_tokens,
            on_error=on_error,
            drawn=drawn,
            snapshot=self.cache_metrics_snapshot,
            own_id=self._own_id,
        )

    # What it is

    @property
    def engine(self) -> PipelineEngine:
        """What sends jobs to the stages, for those who keep steps in flight themselves."""
        return self._engine

    @property
    def config(self) -> LlamaConfig:
        """Of the whole model."""
        return self.stages[0].config

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order. Change their caches through the pipeline alone."""
        return self._stages

    @property
    def placement(self) -> Placement:
        """Layers, devices and mode."""
        return self._placement

    @property
    def groups(self) -> int | None:
        """Groups of sequences asked for in mode "continuous"; None for as many as stages."""
        return self._groups

    @property
    def bridge(self) -> StageBridge:
        """What hands hidden states over; where boundaries differ, the slowest of them."""
        return self._engine.bridge

    @property
    def threads(self) -> list[int]:
        """Intra-op threads of each stage."""
        return self._engine.line.threads

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer, if it has one."""
        return self._tokenizer

    def close(self) -> None:
        """End the workers; a call under way ends with an error. Again is fine."""
        self._engine.close()
        self._closer.detach()

    def __enter__(self) -> LlamaPipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._engine.closed else ""
        first = self.stages[0]
        return (
            f"LlamaPipeline(stages={len(self.stages)}, mode={self.placement.mode.value}, "
            f"bridge={self.bridge.value}, impl={first.impl}, "
            f"threads={self.threads}, "
            f"placement='{self.placement.describe(first.device.type)}'{state})"
        )

    def _rows(self, batch: Iterable[DecodeRow | tuple[str, int, int]]) -> list[DecodeRow]:
        rows = as_rows(batch, self.config.vocab_size)
        for row in rows:
            check_id(row.id)
        return rows

    def _own_id(self, purpose: str) -> str:
        return f"{RESERVED}{purpose}-{next(self._numbers)}"


def _check_groups(groups: int | None, mode: LlamaPipelineMode) -> None:
    if groups is None:
        return
    if as_int(groups, "groups") < 1:
        raise InvalidInputError(f"groups is {groups}; expected 1 or more")
    if mode is not LlamaPipelineMode.CONTINUOUS:
        raise InvalidInputError(
            f"groups is {groups}, but mode is {mode.value!r}; expected mode 'continuous'"
        )
