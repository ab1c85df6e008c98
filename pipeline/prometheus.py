"""A pipeline's snapshot as Prometheus metrics, named and typed as its conventions ask.

https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernels.errors import UnsupportedError

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

Collect = Callable[[], dict[str, Any]]
"""`LlamaPipeline.cache_metrics_snapshot`, or what gives as much of it as there is."""


@dataclass(frozen=True)
class Figure:
    """A metric, and where in a snapshot it stands. A list has a value for each stage.

    Counters get the suffix `_total` where they are written out.
    """

    name: str
    help: str
    where: tuple[str, ...]
    unit: float = 1.0  # what one of the snapshot's is in the metric's unit


COUNTERS = (
    Figure("decode_calls", "Decode calls.", ("pipeline_decode", "calls")),
    Figure("decode_tokens", "Tokens decoded.", ("pipeline_decode", "rows")),
    Figure(
        "decode_seconds", "Time spent in decode calls.", ("pipeline_decode", "total_us_total"), 1e-6
    ),
    Figure(
        "hand_over_bytes",
        "Bytes of hidden states handed from stage to stage by decode calls.",
        ("pipeline_decode", "host_bridge_bytes_total"),
    ),
    Figure(
        "hand_over_seconds",
        "Time decode calls spent on handing hidden states over.",
        ("pipeline_decode", "bridge_us_total"),
        1e-6,
    ),
    Figure(
        "stage_busy_seconds",
        "Time a stage spent computing, sending and receiving.",
        ("pipeline_live", "stage_busy_s_total"),
    ),
    Figure(
        "stage_wait_seconds",
        "Time a stage spent waiting for its neighbours.",
        ("pipeline_live", "stage_wait_s_total"),
    ),
)

GAUGES = (
    Figure(
        "bubble_ratio",
        "Share of the stages' time that went unused, lately.",
        ("pipeline_live", "bubble_share"),
    ),
    Figure(
        "all_stages_busy_ratio",
        "Share of time with every stage busy, lately.",
        ("pipeline_live", "all_busy_share"),
    ),
    Figure(
        "groups_in_flight",
        "Jobs in flight at once, averaged over time, lately.",
        ("pipeline_live", "effective_groups"),
    ),
    Figure("groups", "Groups that sequences are dealt into.", ("pipeline_mode", "groups")),
    Figure(
        "predicted_cycle_seconds",
        "One step of every sequence, as the cost model has it.",
        ("pipeline_mode", "predicted_cycle_us"),
        1e-6,
    ),
    Figure(
        "measured_cycle_seconds",
        "One step of every sequence, as it was.",
        ("pipeline_mode", "measured_cycle_us"),
        1e-6,
    ),
    Figure("kv_free_blocks", "Free blocks of a stage's KV cache.", ("kv_free_blocks",)),
)


def registry_of(collect: Collect) -> CollectorRegistry:
    """A registry of its own, which asks `collect` at each scrape; what is not there is left out.

    Raises `UnsupportedError` without prometheus_client.
    """
    require_prometheus()
    from prometheus_client.registry import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(_Collector(collect))
    return registry


def require_prometheus() -> None:
    """Raise `UnsupportedError` where prometheus_client is not installed."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "prometheus_client is not installed: pip install 'lamella[metrics]'"
        ) from error


class _Collector:
    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        snapshot = self._collect()
        kinds = ((COUNTERS, CounterMetricFamily), (GAUGES, GaugeMetricFamily))
        for figures, family in kinds:
            for figure in figures:
                value = _find(snapshot, figure.where)
                if value is None:
                    continue
                labels = ["stage"] if isinstance(value, list) else []
                metric = family(f"lamella_{figure.name}", figure.help, labels=labels)
                for stage, one in enumerate(value if labels else [value]):
                    metric.add_metric([str(stage)] if labels else [], one * figure.unit)
                yield metric
        yield from _info(snapshot)


def _info(snapshot: dict[str, Any]) -> Iterator[Metric]:
    from prometheus_client.core import InfoMetricFamily

    known = {
        "stages": "stage_count",
        "mode": "selected_pipeline_mode",
        "bridge": "selected_stage_bridge",
    }
    labels = {label: str(snapshot[key]) for label, key in known.items() if key in snapshot}
    if labels:
        yield InfoMetricFamily("lamella_pipeline", "The pipeline's shape.", labels)


def _find(snapshot: dict[str, Any], where: tuple[str, ...]) -> Any:
    """The value at a path; None where there is none."""
    found: Any = snapshot
    for key in where:
        found = found.get(key) if isinstance(found, dict) else None
    return found
