"""A relay between the proxy and the SuperLink that ends TLS on both sides and keeps every byte: the plain-text side of a deployment.

It stands where the SuperLink stands for nginx, with the home's own certificate, and trusts the home's own authority, as nginx does. What it
kept is read as HTTP/1.1 afterwards; nothing that was said is left out of `Relay.streams`.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from flwr.proto.fleet_pb2 import PullMessagesResponse

from server.home import Home
from tests.journeys.coordinated import free_ports

UP, DOWN = "up", "down"
"""From a partner to the SuperLink, and back."""


@dataclass
class Connection:
    """One connection of the proxy to the SuperLink, both ways; of each piece also when it came."""

    sent: dict[str, bytearray] = field(default_factory=lambda: {UP: bytearray(), DOWN: bytearray()})
    ends: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def at(self, offset: int) -> float:
        """When the byte at an offset of the way up came."""
        return self.times[bisect.bisect_right(self.ends, offset)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request and its answer. ``up`` and ``down``: bytes on the wire, heads included. ``who``: the node's public key, as it is sent."""

    path: str
    who: str
    status: int
    asked: bytes
    answered: bytes
    up: int
    down: int
    at: float
    encoded: bool

    @property
    def idle(self) -> bool:
        """What a node asks whether or not there is a run: its heartbeat, and a look for messages that finds none."""
        if self.path == "/v1/fleet/send-node-heartbeat":
            return True
        return self.path == "/v1/fleet/pull-messages" and not PullMessagesResponse.FromString(self.answered).messages_list


class Relay:
    """Records until `stop`; started by `running`."""

    def __init__(self, home: Home) -> None:
        self._home = home
        (self.port,) = free_ports(1)
        self.connections: list[Connection] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[Relay]:
        """Stands between nginx and the SuperLink until the block ends; nginx has to be started within it."""
        written = self._home.proxy_file.read_text()
        superlink = f"server {self._home.settings.superlink_address};"
        assert written.count(superlink) == 1
        self._home.proxy_file.write_text(written.replace(superlink, f"server 127.0.0.1:{self.port};"))
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(60)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(30)
            self._loop.close()

    def streams(self) -> list[tuple[str, int, bytes]]:
        """(direction, connection, everything that went that way), as `marked_world.leaks` reads it."""
        return [(way, number, bytes(one.sent[way])) for number, one in enumerate(self.connections) for way in (UP, DOWN)]

    def exchanges(self) -> list[Exchange]:
        """Every request that was answered."""
        return sorted((one for connection in self.connections for one in _exchanges(connection)), key=lambda one: one.at)

    async def _listen(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._home.certificate, self._home.certificate_key)
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port, ssl=context)

    async def _end(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _relay(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        trusted = ssl.create_default_context(cafile=self._home.ca)
        try:
            far, far_out = await asyncio.open_connection(
                "127.0.0.1", self._home.settings.superlink_port, ssl=trusted, server_hostname="localhost"
            )
        except OSError:  # it is not up: nginx tells its partner so
            near_out.close()
            return
        kept = Connection()
        self.connections.append(kept)
        try:
            await asyncio.gather(_pump(near, far_out, kept, UP), _pump(far, near_out, kept, DOWN))
        finally:
            for one in (near_out, far_out):
                one.transport.abort()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, kept: Connection, way: str) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while piece := await source.read(65536):
            kept.sent[way] += piece
            if way == UP:
                kept.ends.append(len(kept.sent[UP]))
                kept.times.append(time.monotonic())
            target.write(piece)
            await target.drain()
    target.close()


def _exchanges(connection: Connection) -> Iterator[Exchange]:
    up, down = bytes(connection.sent[UP]), bytes(connection.sent[DOWN])
    asked = answered = 0
    while asked < len(up) and answered < len(down):
        try:
            line, heads, body, asked_end = _read(up, asked)
            told, told_heads, answer, answered_end = _read(down, answered)
        except ValueError:  # cut off, when everything was stopped
            return
        yield Exchange(
            path=line.split()[1],
            who=heads.get("flwr-public-key", ""),
            status=int(told.split()[1]),
            asked=body,
            answered=answer,
            up=asked_end - asked,
            down=answered_end - answered,
            at=connection.at(asked),
            encoded="content-encoding" in heads or "content-encoding" in told_heads,
        )
        asked, answered = asked_end, answered_end


def _read(stream: bytes, at: int) -> tuple[str, dict[str, str], bytes, int]:
    """First line, headers and body of the message that begins at an offset, and where it ends; ValueError where the stream ends before."""
    head_end = stream.index(b"\r\n\r\n", at)
    line, *rest = stream[at:head_end].decode("latin-1").split("\r\n")
    heads = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in rest)}
    start = head_end + 4
    if "transfer-encoding" not in heads:
        end = start + int(heads.get("content-length", 0))
        if end > len(stream):
            raise ValueError("cut off")
        return line, heads, stream[start:end], end
    body = bytearray()
    while True:
        size_end = stream.index(b"\r\n", start)
        size = int(stream[start:size_end].split(b";")[0], 16)
        start = size_end + 2
        body += stream[start : start + size]
        start += size + 2
        if size == 0:
            return line, heads, bytes(body), start
