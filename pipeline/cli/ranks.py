"""Commands in the processes of torchrun: rank 0 does what was asked, the others run stages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.cli.errors import blaming, usage_error

if TYPE_CHECKING:
    from pipeline.cli.output import Output
    from pipeline.cli.request import Request
    from pipeline.distributed.journal import Journal
    from pipeline.distributed.world import World


def world_here() -> World | None:
    """The processes that torchrun started; None if this is the only one."""
    if "WORLD_SIZE" not in os.environ:  # nothing heavy is imported for that
        return None
    from pipeline.distributed.world import World

    return World.of_environment()


def ran_a_stage(request: Request) -> bool:
    """In any process but the driver's, run a stage until the driver ends, and say so.

    Everything is silent there but errors. Raises `typer.BadParameter` for an option that does not
    go with several processes.
    """
    world = world_here()
    if world is None or world.drives:
        return False
    from pipeline.cli.folders import checkpoint_folder
    from pipeline.cli.overriding import overriding
    from pipeline.distributed import serve

    with telling_the_others():
        folder = checkpoint_folder(request.model.model)
        options = joint_options(request, world)
    with overriding(request.compute):
        serve(folder, **options)
    return True


@contextmanager
def telling_the_others() -> Iterator[None]:
    """Let the other processes hear of what fails here before this one joins them.

    They would wait for it, for minutes where no agent of theirs ends them.
    """
    try:
        yield
    except Exception as error:
        world = world_here()
        if world is None:
            raise
        from pipeline.distributed.joining import join
        from pipeline.distributed.request import LoadRequest

        join(world, LoadRequest(), lambda _: None, error)  # raises it, once all are told
        raise


def joint_options(request: Request, world: World) -> dict[str, Any]:
    """What all ranks give to `LlamaPipeline.from_pretrained` or `serve`.

    Raises `typer.BadParameter` for an option that does not go with so many processes.
    """
    from pipeline.cli.placing import stage_ordinals
    from pipeline.cli.request import load_options
    from pipeline.distributed.request import LoadRequest

    split, bridge = request.split, request.compute.bridge
    if bridge not in ("auto", "distributed"):
        raise usage_error("--bridge", bridge, "processes of torchrun have auto or distributed")
    with blaming("--splits" if split.splits else "--stages", split.splits or split.stages):
        LoadRequest(stages=split.stages, splits=split.splits).check_count(world)
    return load_options(request) | {
        "stages": split.stages,
        "splits": split.splits,
        "devices": stage_ordinals(split.devices, world.size),
        "mode": request.mode.mode,
    }


@contextmanager
def recovering(run: Sequence[Any], to: Output) -> Iterator[Recovery]:
    """Keep tokens where a restart by torchrun finds them, and give back what an earlier start left.

    `run` is all that the tokens depend on. Nothing is kept where there is no restart to come.
    """
    world = world_here()
    if world is None or not world.agent_store or not world.restarts:
        yield Recovery(None)
        return
    from pipeline.distributed.journal import Journal

    journal = Journal(world, hashlib.sha256(repr(run).encode()).hexdigest())
    if journal.foreign:
        to.remark("an earlier start left tokens of other prompts or options; they are ignored")
    if journal.printed:
        to.remark("an earlier start printed all of this; nothing is left to do")
    elif journal.drawn:
        tokens = sum(map(len, journal.drawn.values()))
        to.remark(f"recovered {tokens} tokens of {len(journal.drawn)} prompts after a restart")
    finished = False
    try:
        yield Recovery(journal)
        finished = True
    finally:
        journal.close(finished=finished)


class Recovery:
    """Tokens of an earlier start, and where those of this one go.

    Attributes:
        possible: whether there may be a restart; a text is then shown when all are complete, so
            that none is shown twice.
        printed: whether an earlier start showed all.
        drawn: tokens of each prompt.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self.possible = journal is not None
        self.printed = journal is not None and journal.printed
        drawn = {} if journal is None else journal.drawn
        self.drawn: Mapping[int, Sequence[int]] = drawn
        self._known = {prompt: len(tokens) for prompt, tokens in drawn.items()}

    def prompts(self, read: Callable[[], list[str]]) -> list[str]:
        """The prompts of the earlier start, else what is read now, which is kept."""
        if self._journal is None:
            return read()
        if self._journal.prompts is None:
            prompts = read()
            self._journal.keep(prompts)
            return prompts
        return self._journal.prompts

    def note(self, prompt: int, token: int | None) -> None:
        """Keep a token that came, unless it is one that was kept already."""
        if self._journal is None or token is None:
            return
        if left := self._known.get(prompt, 0):
            self._known[prompt] = left - 1
            return
        self._journal.note(prompt, token)
