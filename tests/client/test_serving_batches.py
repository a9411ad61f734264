"""Requests that wait together are answered together; nobody answers for another's mistake."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from client.serving_batches import Gathering, TooManyWaiting


class Doubling:
    """Doubles numbers; refuses those below 0; and lets a test hold it up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.begun = threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.begun.set()
        assert self.may_go_on.wait(20)
        if any(number < 0 for number in numbers):
            raise ValueError("below 0")
        return [2 * number for number in numbers]


async def held_up(doubling: Doubling, gathering: Gathering[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    """One request that is being answered, and others that wait for it."""
    doubling.may_go_on.clear()
    tasks = [asyncio.create_task(gathering.ask(0))]
    await asyncio.to_thread(doubling.begun.wait, 20)
    tasks += [asyncio.create_task(gathering.ask(number)) for number in numbers]
    await asyncio.sleep(0)
    return tasks


def test_a_lone_request_waits_for_nobody_and_those_that_wait_are_one_batch() -> None:
    doubling = Doubling()

    async def story() -> list[int]:
        gathering = Gathering[int, int](doubling)
        tasks = await held_up(doubling, gathering, 1, 2, 3)
        doubling.may_go_on.set()
        found = await asyncio.gather(*tasks)
        await gathering.close()
        return found

    assert asyncio.run(story()) == [0, 2, 4, 6]
    assert doubling.batches == [[0], [1, 2, 3]]


def test_a_batch_has_a_largest_size() -> None:
    doubling = Doubling()

    async def story() -> None:
        gathering = Gathering[int, int](doubling, most=2)
        tasks = await held_up(doubling, gathering, 1, 2, 3)
        doubling.may_go_on.set()
        await asyncio.gather(*tasks)
        await gathering.close()

    asyncio.run(story())
    assert doubling.batches == [[0], [1, 2], [3]]


def test_one_bad_request_of_a_batch_fails_alone() -> None:
    doubling = Doubling()

    async def story() -> list[int | BaseException]:
        gathering = Gathering[int, int](doubling)
        tasks = await held_up(doubling, gathering, 1, -2, 3)
        doubling.may_go_on.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await gathering.close()
        return found

    zero, one, bad, three = asyncio.run(story())
    assert (zero, one, three) == (0, 2, 6)
    assert isinstance(bad, ValueError)
    assert doubling.batches == [[0], [1, -2, 3], [1], [-2], [3]]


def test_whoever_hung_up_is_not_computed_for() -> None:
    doubling = Doubling()

    async def story() -> None:
        gathering = Gathering[int, int](doubling)
        tasks = await held_up(doubling, gathering, 1, 2)
        tasks[0].cancel()
        tasks[1].cancel()
        doubling.may_go_on.set()
        assert await tasks[2] == 4
        assert [task.cancelled() for task in tasks] == [True, True, False]
        assert await gathering.ask(5) == 10
        await gathering.close()

    asyncio.run(story())
    assert doubling.batches == [[0], [2], [5]]


def test_more_than_may_wait_are_turned_away_and_the_others_are_answered() -> None:
    doubling = Doubling()

    async def story() -> None:
        gathering = Gathering[int, int](doubling, waiting=2)
        tasks = await held_up(doubling, gathering, 1, 2)
        with pytest.raises(TooManyWaiting):
            await gathering.ask(3)
        doubling.may_go_on.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4]
        await gathering.close()

    asyncio.run(story())


def test_closing_lets_go_of_whoever_waits() -> None:
    doubling = Doubling()

    async def story() -> None:
        gathering = Gathering[int, int](doubling)
        tasks = await held_up(doubling, gathering, 1)
        asyncio.get_running_loop().call_later(0.05, doubling.may_go_on.set)
        await gathering.close()
        assert await tasks[0] == 0
        assert tasks[1].cancelled()

    asyncio.run(story())
