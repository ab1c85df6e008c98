"""Options of `lamella generate` alone: how tokens are drawn and when to stop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from pipeline.cli.errors import usage_error
from pipeline.cli.values import count, number, text

if TYPE_CHECKING:
    from model.sampling import SamplingParams

SAMPLING, LIMITS = "Sampling", "Prompts and limits"
MOST_SEED = (1 << 64) - 1


@dataclass(frozen=True)
class LimitOptions:
    """When a completion ends, and how many run at once."""

    max_new_tokens: Annotated[
        int,
        count(
            "--max-new-tokens",
            "-n",
            help="Most tokens of a completion. [dim]Default: 64.[/]",
            show_default=False,
            rich_help_panel=LIMITS,
        ),
    ] = 64
    stop: Annotated[
        list[str] | None,
        text(
            "--stop",
            help="Text that ends a completion and is left out of it; may be given several times.",
            rich_help_panel=LIMITS,
        ),
    ] = None
    max_batch: Annotated[
        int | None,
        count(
            "--max-batch",
            help="Most sequences at once; the others wait. [dim]Default: 32.[/]",
            rich_help_panel=LIMITS,
        ),
    ] = None
    prefill_chunk: Annotated[
        int | None,
        count(
            "--prefill-chunk",
            help="Most tokens of a prompt that go through the stages at once; longer ones go in "
            "chunks, with decode steps in between. [dim]Default: 256.[/]",
            rich_help_panel=LIMITS,
        ),
    ] = None


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is drawn; greedy unless a temperature is given."""

    temperature: Annotated[
        float,
        number(
            "--temperature",
            allowed="of 0 or more",
            test=lambda x: x >= 0,
            help="0 takes the likeliest token; higher is more varied. [dim]Default: 0.[/]",
            show_default=False,
            rich_help_panel=SAMPLING,
        ),
    ] = 0.0
    top_k: Annotated[
        int,
        count(
            "--top-k",
            least=0,
            help="Only the K likeliest tokens; 0 for all.",
            show_default=False,
            rich_help_panel=SAMPLING,
        ),
    ] = 0
    top_p: Annotated[
        float,
        number(
            "--top-p",
            allowed="above 0 and at most 1",
            test=lambda x: 0 < x <= 1,
            help="Only the likeliest tokens that together have this probability.",
            show_default=False,
            rich_help_panel=SAMPLING,
        ),
    ] = 1.0
    min_p: Annotated[
        float,
        number(
            "--min-p",
            allowed="from 0 to 1",
            test=lambda x: 0 <= x <= 1,
            help="Only tokens at least this probable, relative to the likeliest.",
            show_default=False,
            rich_help_panel=SAMPLING,
        ),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        number(
            "--repetition-penalty",
            allowed="above 0",
            test=lambda x: x > 0,
            help="Above 1 makes tokens that were there already less likely. [dim]Default: 1.[/]",
            show_default=False,
            rich_help_panel=SAMPLING,
        ),
    ] = 1.0
    seed: Annotated[
        int,
        count(
            "--seed",
            least=0,
            most=MOST_SEED,
            help="Same seed, same text, whatever the batch. [dim]Default: 0.[/]",
            show_default=False,
            rich_help_panel=SAMPLING,
        ),
    ] = 0

    def params(self) -> SamplingParams:
        """What the model wants to know; filters without a temperature are wrong usage."""
        from model.sampling import SamplingParams

        if self.temperature == 0:
            for option, value, off in (
                ("--top-k", self.top_k, 0),
                ("--top-p", self.top_p, 1),
                ("--min-p", self.min_p, 0),
            ):
                if value != off:
                    raise usage_error(option, value, "needs a --temperature above 0")
        return SamplingParams(**asdict(self))
