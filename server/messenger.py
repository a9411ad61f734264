"""Asking clients: bounded waiting for nodes, bounded waiting for replies, and a count of the bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.serverapp import Grid

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0


@dataclass(slots=True)
class Traffic:
    """Bytes of serialised messages, seen from a client."""

    up: int = 0
    down: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.up + other.up, self.down + other.down)

    def to_json(self) -> dict[str, int]:
        return {"up": self.up, "down": self.down}


@dataclass(slots=True)
class Messenger:
    """Sends questions over a Flower Grid and collects what comes back in time."""

    grid: Grid
    timeout_s: float
    traffic: dict[int, Traffic] = field(default_factory=dict)

    def connected(self) -> list[int]:
        return sorted(self.grid.get_node_ids())

    def wait_for_nodes(self, count: int, wait_s: float) -> list[int]:
        """Nodes that are connected once there are ``count`` of them, or when the time is up."""
        deadline = time.monotonic() + wait_s
        pause = _FIRST_PAUSE_S
        while len(nodes := self.connected()) < count and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        return nodes

    def ask(self, kind: str, questions: Mapping[int, RecordDict], group: str) -> dict[int, Message]:
        """Sends one question to each node and returns the first reply of each that came in time.

        Args:
            kind: of message, see `shared.wire`.
            questions: node -> content.
            group: Flower's group id; the round.
        """
        messages = [
            Message(content, dst_node_id=node, message_type=kind, ttl=max(self.timeout_s, 1.0), group_id=group)
            for node, content in sorted(questions.items())
        ]
        replies: dict[int, Message] = {}
        for reply in self.grid.send_and_receive(messages, timeout=self.timeout_s) if messages else []:
            node = reply.metadata.src_node_id
            if node in questions and node not in replies:
                replies[node] = reply
                self._count(node, up=message_to_proto(reply).ByteSize())
        for message in messages:  # counted after sending, when the grid has given it its id
            self._count(message.metadata.dst_node_id, down=message_to_proto(message).ByteSize())
        return replies

    def take_traffic(self) -> dict[int, Traffic]:
        """Bytes by node since the last call."""
        taken, self.traffic = self.traffic, {}
        return taken

    def _count(self, node: int, *, up: int = 0, down: int = 0) -> None:
        self.traffic[node] = self.traffic.get(node, Traffic()) + Traffic(up, down)
