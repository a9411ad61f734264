"""A partner's own server, to which other partners deliver passports and erasure notices. The page is ``proto/passports.proto``.

It puts sealed files into the inbox, whole or not at all, and does nothing else with them: `passport import` or the next run opens them.

What an answer may not show is who is linked, and to strangers not even who the partners are. So every failure has one answer; an unknown
sender goes the way of a wrong signature; and of a file nothing is looked at whose length depends on the number of users (`statement_of`).
The reasons are told on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from grpc import aio

from shared.errors import ConfigError, IsthmusError, PassportError
from shared.supervision import tell_on_stderr

from .durable_files import storage_errors, write_file
from .erasure_notice import NOTICE_SUFFIX, is_padded
from .key_rotation import own_keys
from .keys import PublicKeys
from .passport_certificate import Identity
from .passport_exchange import file_name, partners
from .passport_wire import (
    CHUNK_BYTES,
    CLOCK_SKEW_S,
    METHODS,
    MOST_BYTES,
    NOT_TAKEN,
    NOTICE,
    OPENING_KEY,
    PASSPORTS,
    SERVICE,
    TAKEN,
    Opening,
    chunk_of,
    opening_holds,
)
from .passports import statement_of
from .settings import ClientSettings

AT_ONCE = 4
"""Deliveries that are received at the same time, one from each partner; each may hold `MOST_BYTES` of memory."""

_CALLS = 64
_NOBODY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"  # a key to check against where there is none (RFC 8032, 7.1)
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # grpc.health.v1.HealthCheckResponse
_HEALTH_REQUESTS = (b"", b"\x0a" + bytes([len(SERVICE)]) + SERVICE.encode())  # for the server, and for its one service
_OPTIONS = [
    ("grpc.so_reuseport", 0),  # or a second server would silently get half of what comes
    ("grpc.max_receive_message_length", CHUNK_BYTES + 1024),
    ("grpc.max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
]


class PassportService:
    """Takes deliveries for one domain.

    Args:
        settings: of the domain; partners and keys are read anew for each delivery, so a new partner needs no restart.
        deadline_s: longest time for a whole delivery.
        silence_s: longest time between two parts of it.
        hush_s: so long the same reason for a refusal is not told again: strangers must not fill a log.
        tell: is told what came and why something was refused, a line each. No link ids, no counts.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        deadline_s: float = 900.0,
        silence_s: float = 30.0,
        hush_s: float = 60.0,
        tell: Callable[[str], None] = tell_on_stderr,
    ) -> None:
        self._settings, self._tell = settings, tell
        self._deadline_s, self._silence_s, self._hush_s = deadline_s, silence_s, hush_s
        self._told: dict[str, tuple[float, int]] = {}  # reason -> when it was told last, and how often it was met since
        self._inbox = settings.path(settings.passports.inbox)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._busy: set[str] = set()
        self._writing = threading.Lock()
        self.stopping = False

    def handlers(self) -> tuple[Any, ...]:
        """For a gRPC server."""
        ours = {METHODS[PASSPORTS]: self._deliver, METHODS[NOTICE]: self._notice}
        return (
            grpc.method_handlers_generic_handler(SERVICE, {n: grpc.stream_unary_rpc_method_handler(h) for n, h in ours.items()}),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(self._health)}),
        )

    def sweep(self) -> None:
        """Removes what a killed server had not finished writing; makes the inbox where there is none.

        Raises:
            StorageError: the inbox cannot be written.
        """
        with storage_errors("the inbox"):
            self._inbox.mkdir(mode=0o700, parents=True, exist_ok=True)
            for half in self._inbox.glob(f".*-to-{self._settings.domain}*"):
                half.unlink()

    async def _deliver(self, parts: AsyncIterator[bytes], call: Any) -> bytes:
        return await self._take(PASSPORTS, parts, call)

    async def _notice(self, parts: AsyncIterator[bytes], call: Any) -> bytes:
        return await self._take(NOTICE, parts, call)

    async def _take(self, kind: str, parts: AsyncIterator[bytes], call: Any) -> bytes:
        try:
            async with asyncio.timeout(self._deadline_s):
                self._tell(await self._receive(kind, parts, call))
            return TAKEN
        except TimeoutError:
            why = "the sender was too slow"
        except IsthmusError as error:
            why = error.what
        except Exception as error:  # whatever it is: the answer is the one answer
            why = f"unexpected {type(error).__name__}"
        self._tell_refusal(why)
        await call.abort(grpc.StatusCode.ABORTED, NOT_TAKEN)
        raise AssertionError("abort does not return")

    def _tell_refusal(self, why: str) -> None:
        now = time.monotonic()
        last, unsaid = self._told.get(why, (-self._hush_s, 0))
        if now - last < self._hush_s:
            self._told[why] = (last, unsaid + 1)
            return
        self._told[why] = (now, 0)
        self._tell(f"not taken: {why}" + (f" ({unsaid:,} times more since it was told last)" if unsaid else ""))

    async def _receive(self, kind: str, parts: AsyncIterator[bytes], call: Any) -> str:
        """Receives one file. Returns what to tell about it."""
        opening, sender = self._admitted(kind, call.invocation_metadata())
        if sender.partner in self._busy:
            raise PassportError(f"'{sender.partner}' is delivering something already")
        self._busy.add(sender.partner)
        try:
            async with self._room:
                data = await self._collected(parts, opening)
                store = self._store_passports if kind == PASSPORTS else self._store_notice
                return await asyncio.to_thread(store, opening, sender, data)
        finally:
            self._busy.discard(sender.partner)

    def _admitted(self, kind: str, metadata: Any) -> tuple[Opening, PublicKeys]:
        """Who delivers what, once a partner's signature says so."""
        encoded = next((bytes(value) for name, value in metadata or () if name == OPENING_KEY and isinstance(value, bytes)), b"")
        opening = Opening.read(encoded)
        sender = partners(self._settings).get(opening.source)
        if not opening_holds(encoded, sender.verify_key if sender is not None else _NOBODY) or sender is None:
            raise PassportError("no partner's key signed what was said at the beginning")
        if opening.kind != kind or opening.target != self._settings.domain:
            raise PassportError(f"what '{sender.partner}' sends is meant for another domain or another call")
        if abs(time.time() - opening.sent) > CLOCK_SKEW_S:
            raise PassportError(f"'{sender.partner}' sent this at another time: compare the clocks")
        return opening, sender

    async def _collected(self, parts: AsyncIterator[bytes], opening: Opening) -> bytes:
        collected, size, digest = [], 0, hashlib.sha256()
        following = aiter(parts)
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    chunk = chunk_of(await anext(following))
            except StopAsyncIteration:
                break
            size += len(chunk)
            if not chunk or size > opening.size:
                raise PassportError(f"'{opening.source}' sends something else than it said")
            digest.update(chunk)
            collected.append(chunk)
        if size != opening.size or digest.hexdigest() != opening.sha256:
            raise PassportError(f"what '{opening.source}' sent came cut short or changed")
        return b"".join(collected)

    def _store_passports(self, opening: Opening, sender: PublicKeys, data: bytes) -> str:
        path = self._inbox / file_name(sender.partner, self._settings.domain)
        keys, me, now = own_keys(self._settings), self._settings.domain, int(time.time())
        with self._writing:
            statement = statement_of(data, keys=keys, me=me, source=sender, now=now)
            there = _bytes_of(path)
            if there == data:
                return f"taken: {path.name}, which was here already"
            if there is not None:
                with contextlib.suppress(PassportError):  # expired, or for earlier keys: of no use any more
                    if statement_of(there, keys=keys, me=me, source=sender, now=now).issued > statement.issued:
                        return f"taken: {path.name}; the one here is newer and stays"
            write_file(path, data)
        return f"taken: {path.name} ({len(data):,} bytes); isthmus-client passport import opens it"

    def _store_notice(self, opening: Opening, sender: PublicKeys, data: bytes) -> str:
        if not is_padded(own_keys(self._settings).open_sealed(data)):
            raise PassportError(f"what '{sender.partner}' sent is no erasure notice")
        path = self._inbox / f"{sender.partner}-to-{self._settings.domain}-{opening.sha256[:16]}{NOTICE_SUFFIX}"
        with self._writing:
            waiting = sum(one.stat().st_size for one in self._inbox.glob(f"{sender.partner}-to-{self._settings.domain}-*{NOTICE_SUFFIX}"))
            if path.is_file():
                return f"taken: {path.name}, which was here already"
            if waiting + len(data) > MOST_BYTES:
                raise PassportError(f"too many notices of '{sender.partner}' wait in the inbox")
            write_file(path, data)
        return f"taken: {path.name}; isthmus-client passport import does what it asks for"

    async def _health(self, request: bytes, call: Any) -> bytes:
        if request not in _HEALTH_REQUESTS:
            await call.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _NOT_SERVING if self.stopping else _SERVING


async def serve(
    service: PassportService,
    address: str,
    shown: Identity,
    stop: asyncio.Event,
    *,
    started: Callable[[], None] = lambda: None,
    grace_s: float = 30.0,
) -> None:
    """Serves until it is told to stop; deliveries that are under way may end first.

    Args:
        address: ``HOST:PORT`` to listen at.
        shown: the server's certificate.
        grace_s: how long they may take.
    Raises:
        ConfigError: nothing can listen there.
        StorageError: the inbox cannot be written.
    """
    service.sweep()
    server = aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_CALLS)
    server.add_generic_rpc_handlers(service.handlers())
    try:
        server.add_secure_port(address, grpc.ssl_server_credentials([(shown.key, shown.chain)]))
    except RuntimeError:
        what = f"nothing can listen at {address}: the port is taken, or the address is not this machine's"
        raise ConfigError(what, do="Stop what listens there, or choose another address with --listen.") from None
    await server.start()
    started()
    await stop.wait()
    service.stopping = True
    await server.stop(grace_s)


def _bytes_of(path: Path) -> bytes | None:
    with storage_errors(f"'{path.name}'"):
        return path.read_bytes() if path.is_file() else None
