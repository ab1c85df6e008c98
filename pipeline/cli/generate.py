"""`lamella generate`: continue prompts with a model split into stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.generate_options import LIMITS, LimitOptions, SamplingOptions
from pipeline.cli.grouping import command
from pipeline.cli.options import (
    ComputeOptions,
    ModelOptions,
    OutputOptions,
    PrecisionOptions,
    ProgressOptions,
    RunModeOptions,
    SplitOptions,
)
from pipeline.cli.tracing import SeeingOptions, seeing
from pipeline.cli.values import flag

if TYPE_CHECKING:
    from model.sampling import SamplingParams
    from pipeline.cli.output import Output
    from pipeline.cli.ranks import Recovery
    from pipeline.generation import GenerationResult
    from pipeline.llama_pipeline import LlamaPipeline


@command
def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", hidden=True),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts-file",
            "-f",
            metavar="FILE",
            help="More prompts, one per line; - is standard input. Blank lines are skipped.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    chat: Annotated[
        bool,
        flag(
            "--chat",
            help="Put each prompt as a user's message into the checkpoint's chat template.",
            rich_help_panel=LIMITS,
        ),
    ] = False,
    *,
    limits: LimitOptions,
    sampling: SamplingOptions,
    model: ModelOptions,
    split: SplitOptions,
    mode: RunModeOptions,
    compute: ComputeOptions,
    precision: PrecisionOptions,
    see: SeeingOptions,
    output: OutputOptions,
    progress: ProgressOptions,
) -> None:
    """Continue each PROMPT; text goes to standard output, all about the run to standard error.

    Without a prompt, standard input is read if something is piped in, one prompt per line; else
    the bundled model continues its demonstration prompts.
    """
    from pipeline.cli.folders import DEMO_PROMPTS
    from pipeline.cli.metrics_table import metrics_table
    from pipeline.cli.opening import open_pipeline
    from pipeline.cli.output import Output
    from pipeline.cli.prompts import collect_prompts
    from pipeline.cli.ranks import ran_a_stage, recovering, telling_the_others
    from pipeline.cli.request import Request

    to = Output(output, progress)
    request = Request(model, split, mode, compute, precision)
    with telling_the_others():
        params = sampling.params()
    if ran_a_stage(request):  # before standard input is read, which all processes share
        return
    demo = None if model.model else DEMO_PROMPTS
    asked = (prompts, prompts_file, chat, limits, params, model, precision, compute.impl)
    with recovering(asked, to) as recovery:
        with telling_the_others():
            texts = recovery.prompts(
                lambda: collect_prompts(prompts or [], prompts_file, demo, to.remark)
            )
        with (
            seeing(see, to) as seen,
            open_pipeline(request, to) as pipeline,
            seen.watching(pipeline.timeline, pipeline.cache_metrics_snapshot),
        ):
            if recovery.printed:  # the other processes were started anew, too, and may end now
                return
            result = run(pipeline, texts, limits, params, chat, to, recovery)
        if to.wants_json:
            to.document({"completions": documents(result, texts), "metrics": result.metrics})
        else:
            to.remark_on(metrics_table(result.metrics))


def run(
    pipeline: LlamaPipeline,
    texts: Sequence[str],
    limits: LimitOptions,
    params: SamplingParams,
    chat: bool,
    to: Output,
    recovery: Recovery,
) -> GenerationResult:
    """Continue the texts and show what comes."""
    from pipeline.cli.views.choose import view_for, write_all
    from pipeline.cli.views.row import Row

    rows = [Row(number, text) for number, text in enumerate(texts, 1)]
    with pipeline.stream(
        chat_tokens(pipeline, texts) if chat else list(texts),
        max_new_tokens=limits.max_new_tokens,
        sampling=params,
        stop=limits.stop or (),
        max_batch=limits.max_batch,
        prefill_chunk=limits.prefill_chunk,
        drawn=recovery.drawn,
    ) as stream:
        with view_for(to, rows, limits.max_new_tokens, silent=recovery.possible) as view:
            for event in stream:
                recovery.note(event.index, event.token)
                row = rows[event.index]
                row.take(event)
                view.update(row, event.text)
        if recovery.possible and not to.wants_json:
            write_all(to, rows)
        return stream.result()


def chat_tokens(pipeline: LlamaPipeline, texts: Sequence[str]) -> list[list[int]]:
    """Each text as a user's message in the checkpoint's template, encoded."""
    from kernels.errors import UnsupportedError

    tokenizer = pipeline.tokenizer
    if tokenizer is None or not tokenizer.has_chat_template:
        raise UnsupportedError("--chat: the checkpoint has no chat template")
    messages = [[{"role": "user", "content": text}] for text in texts]
    return [
        # The template writes the special tokens itself.
        tokenizer.encode(tokenizer.apply_chat_template(talk), add_special_tokens=False)
        for talk in messages
    ]


def documents(result: GenerationResult, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The completions for `--json`, with the prompts as they were given."""
    return [
        {
            "prompt": texts[done.index],
            "text": done.text,
            "tokens": done.tokens,
            "finish_reason": done.finish_reason,
        }
        for done in result.completions
    ]
