"""The fleet guard: Flower's SuperLink, started so that a partner's node touches its own messages and nobody else's.

Flower 1.41 knows which node asks, and does not ask what it is about: whoever is registered and knows the name of an object gets it, a node
may hand in a reply under another one's number, and a message that answers nothing is taken for an instruction to whichever node it names.
The names are digests and random numbers that nobody tells a partner; nothing here shall depend on that. So Flower's handlers are asked
through the guard: a node gets objects of messages that were addressed to it, answers these in its own name, and confirms these.

What is not its own looks to a node like what is not there. A push in a wrong name is answered with 403, and noted in the log. Objects are
not opened here: what a reply says inside about who sent it is held against the question by `server.prompt_grid`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from shared.console import guarded
from shared.errors import ConfigError

from .flower_internals import verify

if TYPE_CHECKING:
    from types import ModuleType

    from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
    from flwr.proto.message_pb2 import (
        ConfirmMessageReceivedRequest,
        ConfirmMessageReceivedResponse,
        ObjectTree,
        PullObjectRequest,
        PullObjectResponse,
        PushObjectRequest,
        PushObjectResponse,
    )

_LOG = logging.getLogger("isthmus.fleet")
_REMEMBERED = 16
"""Messages of a node whose objects are remembered; older ones are looked up in the SuperLink's state."""
PROGRAM = "flower-superlink"


class Addressed:
    """Which objects belong to messages that were addressed to which node; for many threads.

    Args:
        remembered: messages kept in memory for each node.
    """

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._remembered = remembered
        self._lock = threading.Lock()
        self._of_node: dict[int, OrderedDict[str, frozenset[str]]] = {}

    def handed(self, node_id: int, tree: ObjectTree) -> None:
        """Remembers a message that a node was given, by the tree of its objects."""
        with self._lock:
            mine = self._of_node.setdefault(node_id, OrderedDict())
            mine[tree.object_id] = frozenset(_names(tree))
            mine.move_to_end(tree.object_id)
            while len(mine) > self._remembered:
                mine.popitem(last=False)

    def message(self, node_id: int, run_id: int, message_id: str, state: Any) -> bool:
        """Whether a message was addressed to a node."""
        with self._lock:
            if message_id in self._of_node.get(node_id, ()):
                return True
        return message_id in _messages(node_id, run_id, state)

    def object(self, node_id: int, run_id: int, object_id: str, state: Any) -> bool:
        """Whether an object belongs to a message that was addressed to a node; after a restart the state says so."""
        with self._lock:
            if any(object_id in names for names in self._of_node.get(node_id, {}).values()):
                return True
        from flwr.supercore.object_store import NoObjectInStoreError

        for message_id in _messages(node_id, run_id, state):
            try:
                tree = state.object_store.get_object_tree(message_id)
            except NoObjectInStoreError:  # it was confirmed, and is gone
                continue
            if object_id in _names(tree):
                self.handed(node_id, tree)
                return True
        return False


def _names(tree: ObjectTree) -> Iterable[str]:
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        yield one.object_id
        waiting.extend(one.children)


def _messages(node_id: int, run_id: int, state: Any) -> set[str]:
    """Instructions to a node that the SuperLink still holds and has given out."""
    from flwr.supercore.state.schema.linkstate_models import MessageIns
    from flwr.supercore.utils import uint64_to_int64
    from sqlalchemy import select

    wanted = (
        MessageIns.dst_node_id == uint64_to_int64(node_id),
        MessageIns.run_id == uint64_to_int64(run_id),
        MessageIns.delivered_at != "",
    )
    with state.session() as session:
        return {str(name) for name in session.scalars(select(MessageIns.message_id).where(*wanted))}


class Guard:
    """Stands before Flower's handlers of the Fleet interface; each request has passed the check of the node's signature before.

    Args:
        handlers: Flower's own module.
    """

    def __init__(self, handlers: ModuleType, addressed: Addressed | None = None) -> None:
        self._pull_messages: Callable[..., PullMessagesResponse] = handlers.pull_messages
        self._push_messages: Callable[..., PushMessagesResponse] = handlers.push_messages
        self._pull_object: Callable[..., PullObjectResponse] = handlers.pull_object
        self._push_object: Callable[..., PushObjectResponse] = handlers.push_object
        self._confirm: Callable[..., ConfirmMessageReceivedResponse] = handlers.confirm_message_received
        self._addressed = addressed or Addressed()

    def pull_messages(self, request: PullMessagesRequest, state: Any, store: Any) -> PullMessagesResponse:
        answer = self._pull_messages(request=request, state=state, store=store)
        for tree in answer.message_object_trees:
            self._addressed.handed(request.node.node_id, tree)
        return answer

    def push_messages(self, request: PushMessagesRequest, state: Any) -> PushMessagesResponse:
        """Takes one reply of the node that asks, to a message that it was given.

        Raises:
            HTTPException: 403, it is anything else.
        """
        from flwr.common.constant import SUPERLINK_NODE_ID

        node_id = request.node.node_id
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise _refused(node_id, "not one message and the tree of its objects")
        told, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        if (told.src_node_id, told.dst_node_id) != (node_id, SUPERLINK_NODE_ID):
            raise _refused(node_id, "a message in another name, or to another node")
        if not told.reply_to_message_id or tree.object_id != told.message_id:
            raise _refused(node_id, "a message that is no reply, or with objects of another one")
        # A reply that comes too late answers a message that is gone: Flower itself says what becomes of it.
        return self._push_messages(request=request, state=state)

    def pull_object(self, request: PullObjectRequest, state: Any) -> PullObjectResponse:
        from flwr.proto.message_pb2 import PullObjectResponse

        if not self._addressed.object(request.node.node_id, request.run_id, request.object_id, state):
            _note(request.node.node_id, "asked for an object of no message that it was given")
            return PullObjectResponse(object_found=False, object_available=False)
        return self._pull_object(request=request, state=state)

    def push_object(self, request: PushObjectRequest, state: Any) -> PushObjectResponse:
        """Takes an object within the session that a push of its message opened.

        Raises:
            HTTPException: 403, without a session: Flower would look for one that waits for such an object, of whichever node.
        """
        if not request.session_id:
            raise _refused(request.node.node_id, "an object outside a push of its own")
        return self._push_object(request=request, state=state)

    def confirm_message_received(self, request: ConfirmMessageReceivedRequest, state: Any, store: Any) -> ConfirmMessageReceivedResponse:
        from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse

        if not self._addressed.message(request.node.node_id, request.run_id, request.message_object_id, state):
            _note(request.node.node_id, "confirmed a message that it was not given")
            return ConfirmMessageReceivedResponse()
        return self._confirm(request=request, state=state, store=store)


GUARDED = ("pull_messages", "push_messages", "pull_object", "push_object", "confirm_message_received")


def install() -> None:
    """Puts the guard before the handlers of this process' SuperLink.

    Raises:
        ConfigError: Flower did not take it.
    """
    from flwr.superlink.routers.fleet import router
    from flwr.superlink.servicer.fleet import fleet_handlers

    guard = Guard(fleet_handlers)
    for name in GUARDED:
        setattr(fleet_handlers, name, getattr(guard, name))
    if sys.modules[router.__name__].fleet_handlers.pull_object != guard.pull_object:
        raise ConfigError("the fleet guard could not be put into Flower's SuperLink: nothing was started")


def _refused(node_id: int, what: str) -> Exception:
    from fastapi import HTTPException

    _note(node_id, f"pushed {what}")
    return HTTPException(status_code=403, detail="This node may not push that.")


def _note(node_id: int, what: str) -> None:
    _LOG.warning("node %d %s", node_id, what)


def serve(arguments: Sequence[str]) -> None:
    """Checks what it rests on, then runs the SuperLink until it ends.

    Args:
        arguments: Flower's command line, its own name first.
    Raises:
        ConfigError: Flower is not as expected.
    """
    verify()
    install()
    from flwr.superlink.cli import flower_superlink

    sys.argv = list(arguments)
    flower_superlink()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; `isthmus-server up` supervises it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(guarded(lambda: serve(given), debug=False))


if __name__ == "__main__":
    main()
