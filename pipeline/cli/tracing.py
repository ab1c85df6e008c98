"""Options for seeing what the stages do: a trace of the run, and metrics while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.errors import blaming, usage_error
from pipeline.cli.sizes import seconds_text
from pipeline.cli.values import count, text
from pipeline.spans import KEEP

if TYPE_CHECKING:
    from pipeline.cli.output import Output
    from pipeline.timeline import Timeline

SEEING = "Seeing the stages"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class SeeingOptions:
    """Where the trace goes, and where metrics are served."""

    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="Write what every stage did when to FILE, as a Chrome trace for "
            f"https://ui.perfetto.dev; of a long run the end, {KEEP} spans of each stage.",
            rich_help_panel=SEEING,
        ),
    ] = None
    metrics_port: Annotated[
        int | None,
        count(
            "--metrics-port",
            least=0,
            most=65535,
            help="Serve metrics to Prometheus while the command runs; 0 takes a free port.",
            rich_help_panel=SEEING,
        ),
    ] = None
    metrics_host: Annotated[
        str | None,
        text(
            "--metrics-host",
            metavar="HOST",
            help=f"Address to serve them on. [dim]Default: {LOOPBACK}, this machine alone.[/]",
            rich_help_panel=SEEING,
        ),
    ] = None


class Seeing:
    """What the options ask for, ready since before the pipeline was there."""

    def __init__(self, trace: Path | None, to: Output) -> None:
        self._trace = trace
        self._to = to
        self._snapshot: Callable[[], dict[str, Any]] = dict

    def collect(self) -> dict[str, Any]:
        """The snapshot of the pipeline that is watched; nothing before there is one."""
        return self._snapshot()

    @contextmanager
    def watching(
        self, timeline: Callable[[], Timeline], snapshot: Callable[[], dict[str, Any]]
    ) -> Iterator[None]:
        """Within, a pipeline's metrics are served; then its trace is written, whatever happened.

        Args:
            timeline: `LlamaPipeline.timeline`.
            snapshot: `LlamaPipeline.cache_metrics_snapshot`.
        """
        self._snapshot = snapshot
        try:
            yield
        finally:
            if self._trace is not None:
                from pipeline.chrome_trace import write_chrome_trace

                seen = timeline()
                write_chrome_trace(seen, self._trace)
                told = seconds_text(seen.seconds)
                if seen.lost_ns:
                    told = f"the last {told} of {seconds_text(seen.seconds + seen.lost_seconds)}"
                self._to.remark(f"trace of {told} written to {self._trace}")


@contextmanager
def seeing(options: SeeingOptions, to: Output) -> Iterator[Seeing]:
    """Check the trace's file and start to serve, before a model is loaded; stop at the end.

    Raises:
        typer.BadParameter: FILE cannot be written, or HOST and PORT cannot be listened on.
        UnsupportedError: metrics are asked for, and prometheus_client is not installed.
    """
    if options.trace is not None:
        from pipeline.chrome_trace import check_writable

        with blaming("--trace", options.trace):
            check_writable(options.trace)
    if options.metrics_host is not None and options.metrics_port is None:
        raise usage_error("--metrics-host", options.metrics_host, "needs a --metrics-port")
    found = Seeing(options.trace, to)
    with ExitStack() as stack:
        if options.metrics_port is not None:
            from pipeline.exporter import MetricsHostError, serve_metrics

            host = options.metrics_host or LOOPBACK
            with blaming("--metrics-port", options.metrics_port):
                try:
                    server = serve_metrics(found.collect, options.metrics_port, host)
                except MetricsHostError as error:
                    raise usage_error("--metrics-host", host, str(error)) from error
            stack.enter_context(server)
            to.remark(f"metrics at {server.url}")
        yield found
