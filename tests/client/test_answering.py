"""A message is answered whatever became of its app, inside Flower's own state of a node."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode import start_client_internal as flower
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.nodestate.in_memory_nodestate import CLIENT_APP_CRASHED_ERROR

from client.answering import answered
from tests.client.arrived import arrived

RUN = 77


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="flwr")


class Node:
    """A message that arrived, its task, and what is sent to the server."""

    def __init__(self) -> None:
        objects = ObjectStoreFactory()
        self.objects = objects.store()
        self.state = NodeStateFactory(objectstore_factory=objects).state()
        self.state.set_node_id(5)
        self.task = self.state.create_task(task_type="flwr-clientapp", run_id=RUN)
        self.question = arrived(RUN, "train")
        with no_object_id_recompute():
            self.question.metadata.__dict__["_message_id"] = self.question.object_id
        self.objects.preregister(RUN, get_object_tree(self.question))
        self.state.store_message(self.question)
        self.sent: list[Message] = []
        self.push = answered(flower._push_messages, insert=flower._insert_message, error=CLIENT_APP_CRASHED_ERROR, pause_s=0.01)

    def begins(self) -> None:
        assert self.task is not None
        self.state.claim_task(self.task)
        assert self.state.activate_task(self.task)

    def takes_its_message(self) -> None:
        assert self.state.get_messages_legacy(run_ids=[RUN], is_reply=False, limit=1)
        self.state.record_message_processing_start(self.question.metadata.message_id)

    def replies(self, *, whole: bool = True) -> Message:
        reply = Message(RecordDict({"layer": ArrayRecord({"w": Array(np.ones(3, dtype=np.float32))})}), reply_to=self.question)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
        self.objects.preregister(RUN, get_object_tree(reply))
        for name, each in list(get_all_nested_objects(reply).items())[: None if whole else 1]:
            self.objects.put(name, each.deflate())
        self.state.record_message_processing_end(self.question.metadata.message_id)
        self.state.store_message(reply)
        return reply

    def ends(self, how: str) -> None:
        assert self.task is not None
        assert self.state.finish_task(self.task, how, "")

    def answers(self, what: Callable[..., None] | None = None) -> list[Message]:
        (what or self.push)(state=self.state, object_store=self.objects, send=self._send, push_object=lambda *_: None)
        return self.sent

    def _send(self, message: Message, tree: Any, seconds: float) -> tuple[set[str], str]:
        del seconds
        self.sent.append(message)
        return {tree.object_id}, "session"

    @property
    def is_empty(self) -> bool:
        return not self.state.msg_store and not self.objects.store


@pytest.fixture
def node() -> Node:
    return Node()


def test_a_reply_is_sent_as_it_is(node: Node) -> None:
    node.begins()
    node.takes_its_message()
    reply = node.replies()
    node.ends(SubStatus.COMPLETED)

    (sent,) = node.answers()
    assert sent.metadata.message_id == reply.metadata.message_id
    assert node.state.msg_store == {}


@pytest.mark.parametrize("took_it", [False, True], ids=["before it took its message", "at work"])
def test_an_app_that_was_killed_is_answered_for(node: Node, took_it: bool) -> None:
    node.begins()
    if took_it:
        node.takes_its_message()
    node.ends(SubStatus.FAILED)

    (sent,) = node.answers()
    assert sent.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert sent.metadata.reply_to_message_id == node.question.metadata.message_id
    assert node.is_empty


def test_an_app_that_was_killed_while_it_replied_is_answered_for(node: Node) -> None:
    node.begins()
    node.takes_its_message()
    node.replies(whole=False)
    node.ends(SubStatus.FAILED)

    (sent,) = node.answers()
    assert sent.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert node.is_empty


def test_a_reply_that_was_whole_counts_though_its_app_was_killed_afterwards(node: Node) -> None:
    node.begins()
    node.takes_its_message()
    reply = node.replies()
    node.ends(SubStatus.FAILED)

    (sent,) = node.answers()
    assert sent.metadata.message_id == reply.metadata.message_id


def test_nothing_is_sent_while_the_app_works(node: Node) -> None:
    node.begins()
    node.takes_its_message()
    working = threading.Thread(target=node.answers, daemon=True)
    working.start()
    working.join(0.2)
    assert working.is_alive()
    assert node.sent == []
    node.replies()
    node.ends(SubStatus.COMPLETED)
    working.join(10)
    assert [each.has_error() for each in node.sent] == [False]


def test_flower_alone_waits_for_ever_for_an_app_that_never_took_its_message(node: Node) -> None:
    node.begins()
    node.ends(SubStatus.FAILED)
    waiting = threading.Thread(target=node.answers, args=(flower._push_messages,), daemon=True)
    waiting.start()
    waiting.join(1.2)  # it looks every half second
    assert waiting.is_alive()
    node.replies()  # so that the thread ends with the test
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_task_whose_process_is_gone_ends_at_once(node: Node) -> None:
    node.begins()
    push = answered(
        flower._push_messages,
        insert=flower._insert_message,
        error=CLIENT_APP_CRASHED_ERROR,
        at_work=lambda: False,
        pause_s=0.01,
        gone_s=0.05,
    )

    (sent,) = node.answers(push)
    assert sent.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert node.is_empty


def test_a_task_that_was_only_claimed_is_left_to_flower(node: Node) -> None:
    assert node.task is not None
    node.state.claim_task(node.task)
    push = answered(
        lambda **_: None, insert=flower._insert_message, error=CLIENT_APP_CRASHED_ERROR, at_work=lambda: False, pause_s=0.01, gone_s=0.02
    )
    waiting = threading.Thread(target=node.answers, args=(push,), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    node.ends(SubStatus.FAILED)
    waiting.join(10)
    assert not waiting.is_alive()
