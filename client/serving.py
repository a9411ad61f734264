"""The service that recommends to a partner's own users, for the partner's own programs. The page is ``proto/recommender.proto``.

It runs beside the node and shares nothing with it but the partner's folder: it reads what was delivered and adds what it observes. Nothing
that it learns is sent anywhere, and training reads none of it.

Callers learn what is wrong with a request by the names of its fields; the reasons of all else are told on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from grpc import aio

from shared.addresses import split_address
from shared.errors import ConfigError, PassportError, UsageError
from shared.supervision import tell_on_stderr

from .live_profiles import LiveProfiles
from .recommender.explanation import Explanation
from .recommender.recommender import Recommender
from .recommender.requests import Answer, Request, UnknownItem, UnknownUser
from .serving_batches import Gathering
from .serving_errors import reason_of, status_of
from .serving_model import Served
from .serving_passports import accept, sweep
from .serving_wire import CLASSES, KINDS, METHODS, MOST_MESSAGE_BYTES, SERVICE, STREAMED, parse, pool
from .settings import ClientSettings

DEFAULT_K = 20
MOST_BLOCKED = 10_000
MOST_FILE_BYTES = 64 * 1024 * 1024
FILES_AT_ONCE = 2
"""Files of passports that are received at the same time; each may hold `MOST_FILE_BYTES` of memory."""

CALLS = 512
LOOK_S = 2.0
"""So often the service looks whether something new was delivered."""

_OPTIONS = [
    ("grpc.so_reuseport", 0),  # or a second server would silently get half of what comes
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 128),
    ("grpc.server_handshake_timeout_ms", 10_000),
]


class RecommenderService:
    """Answers for one domain. Lives in one event loop.

    Args:
        settings: of the domain.
        open_: opens what is delivered; `Recommender.open` with the partner's lists.
        deadline_s: longest time for an answer.
        file_deadline_s: longest time for a whole file of passports.
        silence_s: longest time between two parts of it.
        hush_s: so long the same line is not told again: callers must not fill a log.
        tell: is told what is recommended with, and what went wrong. No user, no item, no text.
    """

    def __init__(
        self,
        settings: ClientSettings,
        open_: Callable[[], Recommender],
        *,
        deadline_s: float = 10.0,
        file_deadline_s: float = 300.0,
        silence_s: float = 30.0,
        hush_s: float = 60.0,
        tell: Callable[[str], None] = tell_on_stderr,
    ) -> None:
        self._settings, self._tell_once, self._hush_s = settings, tell, hush_s
        self._deadline_s, self._file_deadline_s, self._silence_s = deadline_s, file_deadline_s, silence_s
        self._told: dict[str, float] = {}
        self._live = LiveProfiles.of(settings)
        self.served = Served(settings, open_, tell=tell)
        self._gathering: Gathering[Request, Answer] = Gathering(self._lists)
        self._files = asyncio.Semaphore(FILES_AT_ONCE)

    def handlers(self) -> Any:
        """For a gRPC server. Messages are parsed here, so that one that is none is an answer and not a traceback."""
        unary: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "Recommend": self._recommend,
            "Similar": self._similar,
            "Explain": self._explain,
            "Observe": self._observe,
        }
        made = {name: grpc.unary_unary_rpc_method_handler(partial(self._one, name, answer)) for name, answer in unary.items()}
        made[STREAMED] = grpc.stream_unary_rpc_method_handler(self._accept)
        return grpc.method_handlers_generic_handler(SERVICE, made)

    def sweep(self) -> None:
        """Removes what a killed service left."""
        sweep(self._settings)

    async def close(self) -> None:
        """Ends what still waits, and lets go of files."""
        await self._gathering.close()
        self.served.close()
        self._live.close()

    async def _one(self, name: str, answer: Callable[[Any], Awaitable[Any]], encoded: bytes, call: Any) -> bytes:
        async def answered() -> Any:
            return await answer(parse(METHODS[name][0], encoded))

        return await self._answered(answered(), self._deadline_s, call)

    async def _answered(self, reply: Awaitable[Any], deadline_s: float, call: Any) -> bytes:
        """The bytes of a reply, or the status that its error stands for."""
        try:
            async with asyncio.timeout(deadline_s):
                encoded: bytes = (await reply).SerializeToString()
                return encoded
        except Exception as error:  # whatever it is: no traceback leaves
            code, text = status_of(error)
            if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE):
                self._tell(f"not answered: {reason_of(error)}")
        await call.abort(code, text)
        raise AssertionError("abort does not return")

    def _tell(self, line: str) -> None:
        now = time.monotonic()
        if now - self._told.get(line, -self._hush_s) >= self._hush_s:
            self._told[line] = now
            self._tell_once(line)

    async def _recommend(self, message: Any) -> Any:
        recommender = self.served.current()
        answer = await self._gathering.ask(_request(message, recommender.n_items))
        return CLASSES["RecommendReply"](
            items=[CLASSES["Recommendation"](item=one.item, score=one.score, reason=one.reason) for one in answer.items],
            source=answer.source,
            model_version=answer.model_version,
            uncertainty=answer.uncertainty,
        )

    def _lists(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """In the thread that computes. Who is being forgotten at this moment is a stranger already, before the data are prepared anew."""
        named = [at for at, request in enumerate(requests) if request.user is not None]
        gone = self._live.forgotten([str(requests[at].user) for at in named])
        strangers = {at for at, forgotten in zip(named, gone, strict=True) if forgotten}
        if any(not requests[at].even_unknown for at in strangers):
            raise UnknownUser("the user is not known here")  # of a batch, each request is asked again alone
        asked = [dataclasses.replace(request, user=None) if at in strangers else request for at, request in enumerate(requests)]
        return self.served.current().recommend(asked)

    def _explained(self, user: str, item: str) -> Explanation:
        if self._live.forgotten([user])[0]:
            raise UnknownUser("the user is not known here")
        return self.served.current().explain(user, item)

    async def _similar(self, message: Any) -> Any:
        recommender = self.served.current()
        k = _length(message, recommender.n_items - 1)
        found = await asyncio.to_thread(recommender.similar, message.item, k)
        items = [CLASSES["Like"](item=one.item, title=one.title, cosine=one.cosine) for one in found]
        return CLASSES["SimilarReply"](items=items, model_version=recommender.model_version)

    async def _explain(self, message: Any) -> Any:
        recommender = self.served.current()
        if not message.user.strip():
            raise UsageError("'user' is empty")
        found = await asyncio.to_thread(self._explained, message.user, message.item)
        return CLASSES["ExplainReply"](
            words=found.words,
            source=found.source,
            score=found.score,
            from_interest=found.from_interest,
            from_popularity=found.from_popularity,
            prototypes=[CLASSES["Share"](name=one.name, share=one.share) for one in found.prototypes],
            like=[CLASSES["Like"](item=one.item, title=one.title, cosine=one.cosine) for one in found.like],
            uncertainty=found.uncertainty,
            model_version=recommender.model_version,
        )

    async def _observe(self, message: Any) -> Any:
        if not 0 < message.kind < len(KINDS):
            raise UsageError("'kind' is no kind of observation", do=f"It is one of: {', '.join(KINDS[1:])}.")
        if not self.served.current().has_item(message.item):
            raise UnknownItem("'item' is not in the catalogue")
        kind = KINDS[message.kind].lower()
        at = message.at if message.HasField("at") else None
        new = await asyncio.to_thread(self._live.observe, message.user, message.item, kind, at=at)
        return CLASSES["ObserveReply"](is_new=new)

    async def _accept(self, parts: AsyncIterator[bytes], call: Any) -> bytes:
        return await self._answered(self._accepted(parts), self._file_deadline_s, call)

    async def _accepted(self, parts: AsyncIterator[bytes]) -> Any:
        space = self.served.current().space
        async with self._files:
            data, first = await self._collected(parts)
            book = partial(accept, self._settings, self._live, data, space_version=space.version, dimension=space.dimension)
            user, link_id = (getattr(first, name) if first.HasField(name) else None for name in ("user", "link_id"))
            found = await asyncio.to_thread(book, user=user, link_id=link_id)
        await self.served.look()  # the very next answer knows it
        return CLASSES["AcceptPassportReply"](source=found.source, passports=found.passports, expires=found.expires)

    async def _collected(self, parts: AsyncIterator[bytes]) -> tuple[bytes, Any]:
        collected, size, first = [], 0, None
        following = aiter(parts)
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    message = parse(METHODS[STREAMED][0], await anext(following))
            except StopAsyncIteration:
                break
            if first is not None and (message.HasField("user") or message.HasField("link_id")):
                raise UsageError("'user' and 'link_id' stand in the first part only")
            first = message if first is None else first
            size += len(message.chunk)
            if size > MOST_FILE_BYTES:
                raise PassportError("'chunk': the file is larger than any that is taken here")
            collected.append(message.chunk)
        if first is None or not size:
            raise PassportError("'chunk' is empty: there is no file")
        return b"".join(collected), first


def _request(message: Any, n_items: int) -> Request:
    """A request as the recommender has it.

    Raises:
        UsageError: a field cannot be what it is.
    """
    if message.HasField("user") and not message.user.strip():
        raise UsageError("'user' is empty", do="Leave it out for somebody without an account.")
    if len(message.blocked) > MOST_BLOCKED:
        raise UsageError(f"'blocked' names more than {MOST_BLOCKED:,} items", do="Give the server a list of blocked items instead.")
    return Request(
        user=message.user if message.HasField("user") else None,
        k=_length(message, n_items),
        declared=message.declared if message.HasField("declared") else None,
        interest=np.array(message.interest, dtype=np.float32) if len(message.interest) else None,
        space_version=message.space_version,
        blocked=tuple(message.blocked),
        with_seen=message.with_seen,
        diversity=message.diversity,
        explain=message.explain,
        even_unknown=message.even_unknown,
    )


def _length(message: Any, most: int) -> int:
    if not message.HasField("k"):
        return max(1, min(DEFAULT_K, most))
    if not 1 <= message.k <= most:
        raise UsageError(f"'k' is outside 1 to {most:,}", do="A list is no longer than the catalogue.")
    return int(message.k)


def is_loopback(address: str) -> bool:
    """Whether a ``HOST:PORT`` is reached from this machine only.

    >>> [is_loopback(one) for one in ("127.0.0.1:1", "[::1]:1", "localhost:1", "0.0.0.0:1", "shop.example:1")]
    [True, True, True, False, False]
    """
    host, _ = split_address(address)
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


async def serve(
    service: RecommenderService,
    address: str,
    credentials: grpc.ServerCredentials | None,
    stop: asyncio.Event,
    *,
    started: Callable[[], None] = lambda: None,
    grace_s: float = 10.0,
    look_s: float = LOOK_S,
) -> None:
    """Serves until it is told to stop; calls that are under way may end first.

    Args:
        address: ``HOST:PORT`` to listen at.
        credentials: of the server; None serves in the clear, on the loopback interface only.
        grace_s: how long they may take.
        look_s: how often it looks for a new delivery.
    Raises:
        ConfigError: nothing can listen there; it would be in the clear for others to read; or the extra ``serve`` is not installed.
        UsageError, ConfigError, DataError: the partner's lists, settings or files cannot be used.
    """
    if credentials is None and not is_loopback(address):
        raise ConfigError(
            "what people are interested in does not travel in the clear: there is no certificate, and the address is not the loopback",
            do="Give --certificate and --key, or listen at 127.0.0.1.",
        )
    server = aio.server(options=_OPTIONS, maximum_concurrent_rpcs=CALLS)
    health = _add_services(server, service)
    looking: asyncio.Task[None] | None = None
    try:
        service.sweep()
        await _look(service, health, first=True)  # before the port is taken: a server that never starts does not let go of it
        _bind(server, address, credentials)
        await server.start()
        started()
        looking = asyncio.create_task(_keep_looking(service, health, look_s))
        await stop.wait()
        await health.enter_graceful_shutdown()
        await server.stop(grace_s)
    finally:
        await server.stop(None)
        if looking is not None:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
        await service.close()


def _bind(server: Any, address: str, credentials: grpc.ServerCredentials | None) -> None:
    try:
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
    except RuntimeError:
        what = f"nothing can listen at {address}: the port is taken, or the address is not this machine's"
        raise ConfigError(what, do="Stop what listens there, or choose another address with --listen.") from None


def _add_services(server: Any, service: RecommenderService) -> Any:
    """The service, health and reflection. Returns the health."""
    try:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection, reflection_pb2
    except ImportError:
        raise ConfigError("the service needs the extra 'serve'", do="Install isthmus[serve].") from None
    server.add_generic_rpc_handlers((service.handlers(),))
    made = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(made, server)
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=pool(health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR))
    return made


async def _look(service: RecommenderService, health: Any, *, first: bool = False) -> None:
    from grpc_health.v1.health_pb2 import HealthCheckResponse

    await service.served.look(first=first)
    status = HealthCheckResponse.SERVING if service.served.there else HealthCheckResponse.NOT_SERVING
    for name in ("", SERVICE):
        await health.set(name, status)


async def _keep_looking(service: RecommenderService, health: Any, look_s: float) -> None:
    while True:
        await asyncio.sleep(look_s)
        await _look(service, health)
