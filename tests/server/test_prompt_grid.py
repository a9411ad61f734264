"""The coordinator looks for replies soon, and no longer than it may."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.superlink.grid import http_grid

from server.prompt_grid import PromptGrid, bounded
from simulations.in_process_grid import InProcessGrid


class Slow(InProcessGrid):
    """Real clients, whose replies are there at set times after the question."""

    def __init__(self, app: ClientApp, *after: float) -> None:
        super().__init__(app, clients=len(after))
        self._after, self._sent, self.asked = after, 0.0, 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._sent = time.monotonic()
        self._due = dict(zip(identifiers := list(super().push_messages(messages)), self._after, strict=True))
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.asked += 1
        since = time.monotonic() - self._sent
        return super().pull_messages([each for each in message_ids if self._due[each] <= since])


@pytest.fixture
def app() -> ClientApp:
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        del context
        return Message(RecordDict(), reply_to=message)

    return made


def ask(grid: Slow, **how: Any) -> tuple[list[int], float]:
    """Nodes that answered, and seconds."""
    begun = time.monotonic()
    messages = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in grid.get_node_ids()]
    replies = PromptGrid(grid).send_and_receive(messages, **how)
    return [reply.metadata.src_node_id for reply in replies], time.monotonic() - begun


def test_every_reply_is_returned_once_and_soon_after_it_came(app: ClientApp) -> None:
    grid = Slow(app, 0.0, 0.9, 0.3)
    nodes, seconds = ask(grid, timeout=60.0)

    assert nodes == [1, 3, 2]
    assert 0.9 <= seconds < 2.9  # Flower would look after 3 s for the first time
    assert grid.asked <= 12  # of six looks, for each of those that are missing


def test_who_is_late_is_not_waited_for(app: ClientApp) -> None:
    nodes, seconds = ask(Slow(app, 0.0, 30.0), timeout=0.4)

    assert nodes == [1]
    assert 0.4 <= seconds < 20


def test_no_question_takes_no_time(app: ClientApp) -> None:
    assert list(PromptGrid(Slow(app)).send_and_receive([], timeout=60.0)) == []


def never_whole(object_id: str) -> bytes:
    raise ObjectUnavailableError(object_id)


def dripping(object_id: str) -> bytes:
    time.sleep(0.2)
    return object_id.encode()


@pytest.mark.parametrize("pull", [never_whole, dripping])
def test_a_reply_that_does_not_become_whole_is_given_up(pull: Callable[[str], bytes]) -> None:
    begun = time.monotonic()
    with pytest.raises(ObjectPullError):
        bounded(inflatable_utils.pull_objects, whole_s=0.5)([f"{number}" for number in range(500)], pull)
    assert time.monotonic() - begun < 10  # Flower: two hours; 500 dripping objects: a quarter of a minute at least


def test_flowers_grid_pulls_with_an_end(app: ClientApp) -> None:
    PromptGrid(Slow(app))
    assert http_grid.pull_objects is not inflatable_utils.pull_objects
    assert http_grid.pull_objects.__qualname__.startswith("bounded.")
    assert http_grid.pull_objects(["a"], str.encode) == {"a": b"a"}
