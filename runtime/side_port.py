"""A small HTTP port beside the gRPC one, in threads of its own: /metrics and /healthz.

Each answer is made from a snapshot that the daemon's event loop hands out; the text, which takes
longer, is written here. A loop that hands out none is not healthy.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from foremoe.errors import ConflictError
from foremoe.runtime.metrics import RuntimeCollector, Snapshot

log = logging.getLogger(__name__)

SNAPSHOT_SECONDS = 5.0
SILENCE_SECONDS = 10.0  # of a client that does not finish its request or does not read the answer
MAX_CONNECTIONS = 16
ACCEPT_AGAIN_SECONDS = 0.2

AskSnapshot = Callable[[], "Future[Snapshot]"]


class SidePort:
    """Listens from construction to ``close``. Raises ConflictError where it cannot."""

    def __init__(self, host: str, port: int, ask: AskSnapshot) -> None:
        try:
            self._server = _Server(host, port, ask)
        except OSError as error:
            raise ConflictError(
                f"--metrics-port: cannot listen at {host}:{port} ({error.strerror}); "
                "choose another --metrics-port or --metrics-host"
            ) from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="foremoe-side-port", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, ask: AskSnapshot) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.ask = ask
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:  # no descriptors, say: the connection waits, and would be tried at once
            time.sleep(ACCEPT_AGAIN_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, _request: Any, client_address: Any) -> None:
        log.warning("the metrics port failed to answer %s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = SILENCE_SECONDS

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path not in ("/metrics", "/healthz"):
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics and /healthz are here\n")
            return
        try:
            snapshot = self.server.ask().result(SNAPSHOT_SECONDS)
        except TimeoutError:
            self._answer(
                HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"the event loop does not answer\n"
            )
            return
        if path == "/metrics":
            self._metrics(snapshot)
        elif snapshot.draining:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"draining\n")
        else:
            self._answer(HTTPStatus.OK, "text/plain", b"serving\n")

    def _metrics(self, snapshot: Snapshot) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(RuntimeCollector(snapshot))
        ProcessCollector(registry=registry)
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        self._answer(HTTPStatus.OK, content_type, encode(registry))

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
