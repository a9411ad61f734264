"""The counter of a shop: the real service in a thread, and a caller in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from client.recommender.recommender import Recommender
from client.serving import RecommenderService, serve
from client.serving_wire import CLASSES, METHODS, SERVICE, STREAMED
from client.settings import ClientSettings
from tests.client.passport_office import PATIENCE_S, Told, free_port

Answer = tuple[str, Any]
"""The name of a status, and the reply or the text of the error."""


class Counter:
    """A caller of one service.

    Attributes:
        address: where the service listens.
        told: what it said on its own machine.
        service: the running service.
        stop: tells it to stop.
    """

    def __init__(self, address: str, told: Told, service: RecommenderService, stop: Callable[[], None]) -> None:
        self.address, self.told, self.service, self.stop = address, told, service, stop
        self._channel = grpc.insecure_channel(address)

    @property
    def channel(self) -> grpc.Channel:
        return self._channel

    def close(self) -> None:
        self._channel.close()

    def ask(self, method: str, *, timeout: float = PATIENCE_S, channel: grpc.Channel | None = None, **fields: object) -> Answer:
        """One call with the given fields."""
        return self.raw(method, CLASSES[METHODS[method][0]](**fields).SerializeToString(), timeout=timeout, channel=channel)

    def raw(self, method: str, encoded: bytes, *, timeout: float = PATIENCE_S, channel: grpc.Channel | None = None) -> Answer:
        """One call with the given bytes."""
        call = (channel or self._channel).unary_unary(f"/{SERVICE}/{method}", response_deserializer=CLASSES[METHODS[method][1]].FromString)
        return answer_of(lambda: call(encoded, timeout=timeout))

    def items(self, **fields: object) -> list[str]:
        """Items of a list, best first."""
        status, reply = self.ask("Recommend", **fields)
        assert status == "OK", reply
        return [one.item for one in reply.items]

    def hand_over(self, data: bytes, *, size: int = 256 * 1024, timeout: float = PATIENCE_S, **first: str) -> Answer:
        """A sealed file in parts."""
        make = CLASSES[METHODS[STREAMED][0]]
        parts = [make(chunk=data[at : at + size]) for at in range(0, max(len(data), 1), size)]
        for name, value in first.items():
            setattr(parts[0], name, value)
        return self.stream(iter(parts), timeout=timeout)

    def stream(self, parts: Iterator[Any], *, timeout: float = PATIENCE_S) -> Answer:
        call = self._channel.stream_unary(
            f"/{SERVICE}/{STREAMED}",
            request_serializer=lambda part: part if isinstance(part, bytes) else part.SerializeToString(),
            response_deserializer=CLASSES[METHODS[STREAMED][1]].FromString,
        )
        return answer_of(lambda: call(parts, timeout=timeout))


def answer_of(call: Callable[[], Any]) -> Answer:
    try:
        return "OK", call()
    except grpc.RpcError as error:
        return error.code().name, error.details()


@contextlib.contextmanager
def served(
    settings: ClientSettings,
    *,
    port: int | None = None,
    credentials: grpc.ServerCredentials | None = None,
    open_: Callable[[], Recommender] | None = None,
    blocked: Path | None = None,
    look_s: float = 0.1,
    grace_s: float = 2.0,
    **limits: float,
) -> Iterator[Counter]:
    """The real server in a thread."""
    told, running, failed = Told(), threading.Event(), []
    address = f"127.0.0.1:{port or free_port()}"
    ends: list[Callable[[], None]] = []
    made: list[RecommenderService] = []

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        ends.append(lambda: None if loop.is_closed() else loop.call_soon_threadsafe(stop.set))
        opening = open_ or partial(Recommender.open, settings, blocked=blocked)
        made.append(RecommenderService(settings, opening, tell=told, **{"hush_s": 0.0, **limits}))
        await serve(made[0], address, credentials, stop, started=running.set, grace_s=grace_s, look_s=look_s)

    def body() -> None:
        try:
            asyncio.run(run())
        except Exception as error:
            failed.append(error)
            running.set()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        assert running.wait(6 * PATIENCE_S)
        if failed:
            raise failed[0]
        counter = Counter(address, told, made[0], ends[0])
        try:
            yield counter
        finally:
            counter.close()
    finally:
        if thread.is_alive():
            ends[0]()
        thread.join(3 * PATIENCE_S)
        assert not thread.is_alive()
        if failed and running.is_set():
            raise failed[0]


def until(true: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> None:
    """Waits until something holds."""
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)
