"""A home's proxy as a real nginx, and somebody to stand behind it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server import proxy
from server.home import Home
from server.processes import find_nginx


def installed() -> str:
    """The program; without it the test skips and says how to get it."""
    found = find_nginx()
    if found is None:
        pytest.skip(proxy.INSTALL)
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Upstream:
    """What stands where the SuperLink would: answers 200 with the length of the body, and remembers what reached it."""

    port: int
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self, certificate: Path, key: Path) -> Iterator[Upstream]:
        seen = self.requests

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                seen.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                answer = str(len(body)).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _any  # noqa: N815

            def log_message(self, format: str, *args: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Answer)
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@contextlib.contextmanager
def proxy_of(home: Home, program: str) -> Iterator[subprocess.Popen[bytes]]:
    """nginx with a home's configuration, until the block ends."""
    with (home.logs / "proxy.log").open("wb") as log:
        process = subprocess.Popen(proxy.command(home.root, program), stdout=log, stderr=log)
    try:
        for _ in range(200):
            assert process.poll() is None, (home.logs / "proxy.log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", home.settings.port), timeout=1):
                break
            time.sleep(0.02)
        else:
            raise AssertionError("nginx does not listen")
        yield process
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def trusting(home: Home) -> ssl.SSLContext:
    """What a partner's client trusts: the home's authority and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(home.ca)
    return context


def ask(home: Home, path: str, body: bytes = b"", *, method: str = "POST", headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """One request to the proxy, its path sent as it is written here."""
    connection = http.client.HTTPSConnection("localhost", home.settings.port, context=trusting(home), timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": "localhost", "Content-Length": str(len(body)), **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
