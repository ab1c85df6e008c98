"""A scrape gives what the snapshot says, by Prometheus' rules; the server leaves nothing behind."""

from __future__ import annotations

import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kernels.errors import InvalidInputError, UnsupportedError
from pipeline import exporter
from pipeline.exporter import serve_metrics
from pipeline.live import LiveMetrics
from pipeline.prometheus import COUNTERS, GAUGES
from pipeline.stats import DecodeStats
from tests.pipeline.recorded import recorded


def snapshot() -> dict[str, Any]:
    recorder = recorded(2, 2)
    end = recorder.timeline().end_ns
    return {
        "stage_count": 2,
        "selected_pipeline_mode": "continuous",
        "selected_stage_bridge": "host",
        "pipeline_decode": DecodeStats(2).json()
        | {"calls": 3, "rows": 12, "total_us_total": 2_500_000},
        "pipeline_mode": {"groups": 3, "predicted_cycle_us": 1500, "measured_cycle_us": None},
        "pipeline_live": LiveMetrics(recorder, clock=lambda: end).json(),
        "kv_free_blocks": [7, 5],
    }


def scrape(url: str, accept: str = "") -> str:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(family: Metric) -> dict[tuple[tuple[str, str], ...], float]:
    return {tuple(sample.labels.items()): sample.value for sample in family.samples}


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def test_a_scrape() -> None:
    given = snapshot()
    with serve_metrics(lambda: given, 0) as server:
        text = scrape(server.url)
    found = families(text)
    live = given["pipeline_live"]
    assert "lamella_decode_tokens_total 12.0\n" in text
    assert values(found["lamella_decode_calls"]) == {(): 3}
    assert values(found["lamella_decode_seconds"]) == {(): 2.5}
    assert values(found["lamella_stage_busy_seconds"]) == {
        (("stage", "0"),): live["stage_busy_s_total"][0],
        (("stage", "1"),): live["stage_busy_s_total"][1],
    }
    assert list(values(found["lamella_stage_wait_seconds"]).values()) == live["stage_wait_s_total"]
    assert values(found["lamella_bubble_ratio"]) == {(): live["bubble_share"]}
    assert values(found["lamella_all_stages_busy_ratio"]) == {(): live["all_busy_share"]}
    assert values(found["lamella_groups_in_flight"]) == {(): live["effective_groups"]}
    assert values(found["lamella_groups"]) == {(): 3}
    assert list(values(found["lamella_kv_free_blocks"]).values()) == [7, 5]
    assert values(found["lamella_predicted_cycle_seconds"]) == {(): pytest.approx(0.0015)}
    assert "lamella_measured_cycle_seconds" not in found  # there is none yet
    shape = {"stages": "2", "mode": "continuous", "bridge": "host"}
    assert found["lamella_pipeline_info"].samples[0].labels == shape


def test_types_and_helps() -> None:
    given = snapshot()
    given["pipeline_mode"]["measured_cycle_us"] = 1600
    with serve_metrics(lambda: given, 0) as server:
        found = families(scrape(server.url))
        strict = scrape(server.url, "application/openmetrics-text; version=1.0.0")
    for kind, figures in (("counter", COUNTERS), ("gauge", GAUGES)):
        for figure in figures:
            family = found.pop(f"lamella_{figure.name}")
            assert (family.type, family.documentation) == (kind, figure.help)
    assert set(found) == {"lamella_pipeline_info"}
    assert strict.endswith("# EOF\n")
    assert len(list(openmetrics.text_string_to_metric_families(strict))) > 10


def test_each_scrape_asks_again() -> None:
    given = {"pipeline_decode": {"calls": 0}}
    with serve_metrics(lambda: given, 0) as server:
        for calls in (1, 2):
            given["pipeline_decode"]["calls"] = calls
            assert values(families(scrape(server.url))["lamella_decode_calls"]) == {(): calls}


def test_what_is_not_there_is_left_out() -> None:
    with serve_metrics(dict, 0) as server:
        assert scrape(server.url) == ""


def test_a_failing_snapshot_is_told_and_the_next_scrape_works(
    capfd: pytest.CaptureFixture[str],
) -> None:
    answers: list[dict[str, Any]] = [{"pipeline_decode": {"calls": 1}}]
    failures = [RuntimeError("closed")]

    def collect() -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return answers.pop()

    with serve_metrics(collect, 0) as server:
        with pytest.raises(urllib.error.HTTPError, match="500") as failed:
            scrape(server.url)
        assert failed.value.read() == b"RuntimeError: closed\n"
        failed.value.close()
        assert "lamella_decode_calls_total 1.0" in scrape(server.url)
    assert capfd.readouterr() == ("", "")


def test_only_this_machine_unless_told_otherwise() -> None:
    with serve_metrics(dict, 0) as server:
        assert server._server.socket.getsockname() == ("127.0.0.1", server.port)
        assert server.url == f"http://127.0.0.1:{server.port}/metrics"
    with serve_metrics(dict, 0, "0.0.0.0") as server:
        assert server._server.socket.getsockname()[0] == "0.0.0.0"
        scrape(f"http://127.0.0.1:{server.port}/metrics")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6() -> None:
    try:
        server = serve_metrics(dict, 0, "::1")
    except InvalidInputError:
        pytest.skip("no IPv6 loopback here")
    with server:
        assert server.url.startswith("http://[::1]:")
        scrape(server.url)


def test_a_port_in_use() -> None:
    before = threads()
    with serve_metrics(dict, 0) as server:
        beside = threads()
        with pytest.raises(
            InvalidInputError, match=rf"on 127.0.0.1 port {server.port}: Address already in use"
        ):
            serve_metrics(dict, server.port)
        assert threads() == beside
    with serve_metrics(dict, server.port):  # free again
        pass
    assert threads() == before


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("127.0.0.1", -1), ("a b", 0)])
def test_nowhere_to_listen(host: str, port: int) -> None:
    with pytest.raises(InvalidInputError, match="port"):
        serve_metrics(dict, port, host)


def test_close_waits_for_scrapes_and_leaves_no_thread() -> None:
    before = threads()
    inside, go_on = threading.Event(), threading.Event()

    def collect() -> dict[str, Any]:
        inside.set()
        assert go_on.wait(30)
        return {"pipeline_decode": {"calls": 1}}

    server = serve_metrics(collect, 0)
    texts: list[str] = []
    client = threading.Thread(target=lambda: texts.append(scrape(server.url)))
    client.start()
    assert inside.wait(30)
    threading.Timer(0.1, go_on.set).start()
    server.close()
    assert threads() - before <= {client}
    client.join()
    assert "lamella_decode_calls_total 1.0" in texts[0]
    server.close()
    with pytest.raises(urllib.error.URLError):
        scrape(server.url)


class Dribbler(threading.Thread):
    """A client that sends a byte every 20 ms, until nobody hears it any more."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        self.tired = threading.Event()
        self.start()

    def run(self) -> None:
        with self.connection, suppress(OSError):
            while not self.tired.wait(0.02):
                self.connection.sendall(b"a")


def test_a_client_that_sends_a_byte_at_a_time_is_cut_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exporter, "CLIENT_SECONDS", 0.3)
    with serve_metrics(dict, 0) as server:
        slow = Dribbler(server.port)
        scrape(server.url)
        slow.join(20)
        heard = slow.is_alive()
        slow.tired.set()
    assert not heard
    assert capfd.readouterr() == ("", "")


def test_a_client_that_sends_a_byte_at_a_time_does_not_hold_close_up() -> None:
    before = threads()
    server = serve_metrics(dict, 0)
    slow = Dribbler(server.port)
    scrape(server.url)
    start = time.monotonic()
    server.close()
    took = time.monotonic() - start
    slow.tired.set()
    slow.join()
    assert took < exporter.CLOSE_SECONDS
    assert threads() == before


def test_a_snapshot_that_hangs_does_not_hold_close_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "CLOSE_SECONDS", 0.1)
    before = threads()
    inside, go_on = threading.Event(), threading.Event()

    def collect() -> dict[str, Any]:
        inside.set()
        assert go_on.wait(30)
        return {}

    server = serve_metrics(collect, 0)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert inside.wait(30)
        server.close()
        left = threads() - before
        assert [thread.daemon for thread in left] == [True]
        assert client.recv(1) == b""  # it was cut
    go_on.set()
    for thread in left:
        thread.join(30)


def test_a_client_that_says_nothing_does_not_hold_it_up(capfd: pytest.CaptureFixture[str]) -> None:
    before = threads()
    server = serve_metrics(dict, 0)
    with socket.create_connection(("127.0.0.1", server.port)):
        scrape(server.url)  # others are served meanwhile
        server.close()
    assert threads() == before
    assert capfd.readouterr() == ("", "")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'lamella\[metrics\]'"):
        serve_metrics(dict, 0)
