"""Requests that wait at the same time are answered together: one pass over the catalogue for all of them instead of one for each.

One thread computes; while it does, the next requests gather. So a lone caller waits for nobody, and many callers share the work instead of
taking the processor from one another.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class TooManyWaiting(Exception):
    """More requests wait than may."""


class Gathering(Generic[Asked, Answered]):
    """Asks in batches, in one thread. Lives in one event loop.

    Args:
        answer: answers a batch, one for each request in order. Called in the thread; where it raises on a batch, it is asked again for each
            request alone, so that nobody answers for another's mistake.
        most: requests of a batch.
        waiting: requests that may wait.
    """

    def __init__(self, answer: Callable[[Sequence[Asked]], Sequence[Answered]], *, most: int = 64, waiting: int = 512) -> None:
        self._answer, self._most, self._waiting = answer, most, waiting
        self._queue: deque[tuple[Asked, asyncio.Future[Answered]]] = deque()
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="recommender")
        self._busy: asyncio.Task[None] | None = None

    async def ask(self, request: Asked) -> Answered:
        """The answer to one request; whatever `answer` raises for it. A caller who is cancelled is left out of batches to come.

        Raises:
            TooManyWaiting: nothing was done.
        """
        if len(self._queue) >= self._waiting:
            raise TooManyWaiting
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._queue.append((request, future))
        if self._busy is None or self._busy.done():
            self._busy = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Ends the thread; whoever still waits is cancelled."""
        for _, future in self._queue:
            future.cancel()
        self._queue.clear()
        if self._busy is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._busy
        self._thread.shutdown(wait=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(self._most, len(self._queue)))]
            batch = [(request, future) for request, future in batch if not future.done()]  # the others hung up
            if not batch:
                continue
            found = await loop.run_in_executor(self._thread, self._answers, [request for request, _ in batch])
            for (_, future), one in zip(batch, found, strict=True):
                if future.done():
                    continue
                if isinstance(one, BaseException):
                    future.set_exception(one)
                else:
                    future.set_result(one)

    def _answers(self, requests: list[Asked]) -> Sequence[Answered | BaseException]:
        """Never raises: an error is an answer."""
        try:
            return self._answer(requests)
        except Exception as error:  # whatever it is, it is the answer of the request that caused it, and of no other
            if len(requests) == 1:
                return [error]
        return [one for request in requests for one in self._answers([request])]
