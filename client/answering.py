"""Every message is answered, whatever became of the app that worked on it.

Flower's SuperNode works on one message at a time and waits until there is a reply. Where the app was killed before it took its message, or
while it handed in its reply, that is for ever: Flower answers only for an app that had its message and had not begun to reply. The node
stays online, and deaf. So the node waits until the task of a message has ended, one way or the other, and answers for it where there is no
whole reply, with Flower's own error for an app that stopped responding.

Flower ends a task after a minute without a sign of life. Where the process of an app can be seen, its task ends soon after it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.app import Error, Message
    from flwr.proto.task_pb2 import Task
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

_LOG = logging.getLogger("isthmus.guard")
_PAUSE_S = 0.1
_GONE_S = 3.0
"""Longer than it takes a process that began its task to be seen, and one that ends it to end."""


def answered(
    push: Callable[..., None],
    *,
    insert: Callable[..., None],
    error: Error,
    at_work: Callable[[], bool] = lambda: True,
    pause_s: float = _PAUSE_S,
    gone_s: float = _GONE_S,
) -> Callable[..., None]:
    """Flower's ``_push_messages``, called when there is something to push.

    Args:
        push: Flower's own function.
        insert, error: Flower's own way to answer for an app.
        at_work: whether there is a process that works on a message; True where nobody knows.
        pause_s: seconds between two looks.
        gone_s: seconds without such a process after which a task that began has ended.
    """

    def push_messages(*, state: InMemoryNodeState, object_store: Any, **others: Any) -> None:
        seen = time.monotonic()
        while tasks := _unfinished(state):
            if at_work():
                seen = time.monotonic()
            elif time.monotonic() - seen > gone_s:
                _end_those_that_began(state, tasks)
            time.sleep(pause_s)
        for message, replies in _without_whole_reply(state, object_store):
            from flwr.app import Message

            _LOG.error("message %s is answered for its app, which ended without a whole reply", message.metadata.message_id)
            state.delete_messages(message_ids=replies)
            for name in (*replies, message.metadata.message_id):
                object_store.delete(name)
            insert(Message(error, reply_to=message), state, object_store)
        push(state=state, object_store=object_store, **others)

    return push_messages


def _unfinished(state: InMemoryNodeState) -> Sequence[Task]:
    from flwr.common.constant import Status

    return state.get_tasks(statuses=[Status.PENDING, Status.STARTING, Status.RUNNING])


def _end_those_that_began(state: InMemoryNodeState, tasks: Sequence[Task]) -> None:
    """One that was only claimed goes back to Flower's queue by itself."""
    from flwr.common.constant import Status, SubStatus

    for task in tasks:
        if task.status.status == Status.RUNNING:
            state.finish_task(task.task_id, SubStatus.FAILED, "the process of the app is gone")


def _without_whole_reply(state: InMemoryNodeState, object_store: Any) -> list[tuple[Message, Sequence[str]]]:
    """Messages whose task has ended, and the parts of replies to each; a reply is stored before its task ends."""
    with state.lock_msg_store:
        stored = [entry.message for entry in state.msg_store.values()]
    replies: dict[str, list[str]] = {}
    for one in stored:
        replies.setdefault(one.metadata.reply_to_message_id, []).append(one.metadata.message_id)
    questions = [(one, replies.get(one.metadata.message_id, [])) for one in stored if not one.metadata.reply_to_message_id]
    return [(one, parts) for one, parts in questions if not any(_is_whole(name, object_store) for name in parts)]


def _is_whole(message_id: str, object_store: Any) -> bool:
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.object_store import NoObjectInStoreError

    try:
        tree = object_store.get_object_tree(message_id)
    except NoObjectInStoreError:
        return False
    return all(object_store.get(each.object_id) for each in iterate_object_tree(tree))
