"""A real TLS server on the loopback that answers what a test says, with a clock of its own."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path


@dataclass
class Told:
    """What a server answers, and what it was asked."""

    statuses: Mapping[str, int] = field(default_factory=dict)
    ahead_s: float = 0.0
    says_time: bool = True
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _ in self.asked]


@contextlib.contextmanager
def https(leaf: Path | None, told: Told) -> Iterator[int]:
    """Runs a server; its port.

    Args:
        leaf: certificate and key in one file; None speaks plain HTTP.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.asked.append((self.command, self.path, int(self.headers.get("Content-Length") or 0)))
            self.send_response_only(told.statuses.get(self.path, 404))
            if told.says_time:
                self.send_header("Date", formatdate(time.time() + told.ahead_s, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:  # a client that does not trust us leaves in the middle
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if leaf is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
