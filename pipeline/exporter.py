"""An HTTP endpoint that Prometheus scrapes, in a thread of its own."""

from __future__ import annotations

import errno
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from kernels.errors import InvalidInputError
from pipeline.prometheus import Collect, registry_of

POLL_SECONDS = 0.2
"""How often the thread looks whether it should end."""

CLIENT_SECONDS = 5.0
"""How long a scrape may last, from connecting to the end of the answer."""

CLOSE_SECONDS = 2.0
"""How long scrapes under way are waited for at the end."""


class MetricsHostError(InvalidInputError):
    """The host is not one of this machine's, whatever the port."""


class MetricsServer:
    """A running endpoint; `close` (or leaving a `with` block) ends it."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, args=(POLL_SECONDS,), name="lamella-metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host = self._server.server_name
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop listening, and let scrapes under way end; again is fine.

        They get their answers if these are there within `CLOSE_SECONDS`; then their connections are
        cut, and nobody waits for their threads.
        """
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.end_scrapes()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve_metrics(collect: Collect, port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serve what `collect` returns at each scrape, as `registry_of` puts it.

    Args:
        collect: gives a pipeline's snapshot; called in a thread of the server. If it raises, the
            scrape is answered with its error, and the next one asks again.
        port: 0 takes one that is free.
        host: name or address to listen on; others than this machine only reach it elsewhere
            than on loopback, and whoever reaches it may read it.

    Raises:
        UnsupportedError: prometheus_client is not installed.
        InvalidInputError: host and port cannot be listened on, such as a port that is in use; a
            `MetricsHostError` if that is because of the host.
    """
    registry = registry_of(collect)
    from prometheus_client import make_wsgi_app

    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            return metrics(environ, start_response)
        except Exception as error:
            plain = [("Content-Type", "text/plain; charset=utf-8")]
            start_response("500 Internal Server Error", plain)
            return [f"{type(error).__name__}: {error}\n".encode()]

    if not 0 <= port <= 65535:
        raise InvalidInputError(f"metrics port {port}: expected 0 to 65535")
    try:
        server = _Server(host, port)
    except (OSError, ValueError) as error:  # a name that is none is a ValueError
        unknown = isinstance(error, (socket.gaierror, ValueError))
        at_host = unknown or getattr(error, "errno", None) == errno.EADDRNOTAVAIL
        why = getattr(error, "strerror", None) or error
        raise (MetricsHostError if at_host else InvalidInputError)(
            f"metrics cannot be served on {host} port {port}: {why}"
        ) from error
    server.set_app(answer)
    return MetricsServer(server)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each scrape, which has a deadline."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self._scrapes: dict[threading.Thread, tuple[socket.socket, float]] = {}
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's asks for the host's name, which takes seconds where no name server answers.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        self._scrapes[thread] = (request, time.monotonic() + CLIENT_SECONDS)
        thread.start()

    def service_actions(self) -> None:
        """Every `POLL_SECONDS`: cut the connections of those who are too slow."""
        now = time.monotonic()
        for thread, (connection, deadline) in list(self._scrapes.items()):
            if not thread.is_alive():
                del self._scrapes[thread]
            elif now > deadline:
                _shut(connection, socket.SHUT_RDWR)

    def end_scrapes(self) -> None:
        """Hear no more from clients, but let them have their answers; after `serve_forever`."""
        for connection, _ in self._scrapes.values():
            _shut(connection, socket.SHUT_RD)
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread, (connection, _) in self._scrapes.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            _shut(connection, socket.SHUT_RDWR)
        self._scrapes.clear()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was too slow, has nobody to tell."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes come every few seconds; standard error is for the run."""


def _shut(connection: socket.socket, how: int) -> None:
    with suppress(OSError):  # it is closed already
        connection.shutdown(how)
