"""A Flower Grid without network or processes: it calls the client app directly, one client after the other.

Every message in both directions becomes protobuf bytes and is read back from them, as on a real wire, so what a client or the server sees
is a copy that went through Flower's own serialisation. A client that raises becomes an error reply with Flower's text, exactly as Flower
would forward it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Literal

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Direction = Literal["down", "up"]
OnMessage = Callable[[Direction, int, bytes], None]
"""Called with the direction (down = to the client), the client's number from 0, and the message's bytes."""

_RUN_ID = 1


class InProcessGrid(Grid):
    """All clients of one run in this process.

    Args:
        client_app: the same app that a partner runs.
        clients: how many; client ``i`` has ``partition-id`` i in its node configuration, and node id i + 1.
        on_message: sees every message's bytes.
    """

    def __init__(self, client_app: ClientApp, clients: int, on_message: OnMessage | None = None) -> None:
        self._app = client_app
        self._on_message = on_message
        self._contexts = {number + 1: _context(number, clients) for number in range(clients)}
        self._replies: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        self.client_seconds = 0.0
        """Time spent inside the client app, over all clients."""
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None:
        """Flower's interface; there is one run only."""
        del run

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=_RUN_ID)

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """Flower's older interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Runs the clients at once; their replies wait for `pull_messages`."""
        identifiers = []
        for message in messages:
            identifier = self._name(message)
            self._replies[identifier] = self._answer(message)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(identifier) for identifier in list(message_ids) if identifier in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Runs the clients one after the other; a reply that comes after the time is up is lost, as it would be on a network."""
        deadline = None if timeout is None else time.monotonic() + timeout
        replies = []
        for message in messages:
            self._name(message)
            reply = self._answer(message)
            if deadline is None or time.monotonic() <= deadline:
                replies.append(reply)
        return replies

    def _name(self, message: Message) -> str:
        identifier = f"message-{next(self._numbers)}"
        message.metadata.__dict__["_message_id"] = identifier  # as Flower's own grids do: there is no setter
        return identifier

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        received = self._carry("down", node, message)
        started = time.perf_counter()
        try:
            reply = self._app(received, self._contexts[node])
        except Exception as error:  # whatever a client raises: Flower forwards its type and text
            reason = f"{type(error)}:<'{error}'>"
            reply = Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=received)
        finally:
            self.client_seconds += time.perf_counter() - started
        self._name(reply)
        return self._carry("up", node, reply)

    def _carry(self, direction: Direction, node: int, message: Message) -> Message:
        data = message_to_proto(message).SerializeToString(deterministic=True)
        if self._on_message is not None:
            self._on_message(direction, node - 1, data)
        return message_from_proto(ProtoMessage.FromString(data))


def _context(number: int, clients: int) -> Context:
    return Context(
        run_id=_RUN_ID,
        node_id=number + 1,
        node_config={"partition-id": number, "num-partitions": clients},
        state=RecordDict(),
        run_config=UserConfig(),
    )
