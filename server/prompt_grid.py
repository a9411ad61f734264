"""Flower's grid, asked for replies as often as it makes sense, where Flower looks every 3 s; and a reply is its who was asked.

A node hands in a reply twice: in an envelope that the SuperLink and `server.fleet_guard` hold against the question, and in an object that
Flower's grid makes the message of without a look at the envelope. Inside may stand another node's number, or no message at all, over which
the grid breaks with everything else that it was about to return. So replies are fetched one question at a time, and held against it.

A reply whose objects do not come is waited for by Flower for up to two hours, and nobody else's is fetched meanwhile. Here it is waited for
half a minute, as a whole.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx
from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.superlink.grid import http_grid

from shared.polling import pause_s

from .grid_around import GridAround

_LOG = logging.getLogger("isthmus.server")


WHOLE_S = 30.0
"""Seconds that a reply which has begun to arrive may take: three times what the largest takes at a megabit a second."""


def bounded(pull: Callable[..., dict[str, bytes]], whole_s: float = WHOLE_S) -> Callable[..., dict[str, bytes]]:
    """Flower's ``pull_objects`` with an end.

    Args:
        whole_s: seconds for all objects together, however many there are.
    """

    def pull_objects(object_ids: list[str], pull_object_fn: Callable[[str], bytes], **how: Any) -> dict[str, bytes]:
        until = time.monotonic() + whole_s

        def in_time(object_id: str) -> bytes:
            if time.monotonic() > until:
                raise ObjectPullError(object_id, "it came too slowly")
            return pull_object_fn(object_id)

        return pull(object_ids, in_time, **{"max_time": whole_s, **how})

    return pull_objects


def limit_pulls() -> None:
    """Bounds what Flower's grid of this process waits for."""
    if http_grid.pull_objects is inflatable_utils.pull_objects:
        http_grid.pull_objects = bounded(inflatable_utils.pull_objects)


class PromptGrid(GridAround):
    """Only `send_and_receive` is its own.

    Args:
        grid: Flower's own.
    """

    def __init__(self, grid: Grid) -> None:
        limit_pulls()
        super().__init__(grid)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Sends messages, and returns the replies that came in time. One that cannot be used counts as none, and is not waited for.

        Args:
            timeout: seconds; None waits for all of them.
        """
        sent = list(messages)
        asked = dict(zip(self._grid.push_messages(sent), (message.metadata.dst_node_id for message in sent), strict=False))
        missing = {identifier: node for identifier, node in asked.items() if identifier}
        begun = time.monotonic()
        replies: list[Message] = []
        while missing:
            for identifier, node in list(missing.items()):
                if (new := self._replies_to(identifier, node)) is not None:
                    replies += new
                    del missing[identifier]
            waited = time.monotonic() - begun
            if not missing or (timeout is not None and waited >= timeout):
                break
            pause = pause_s(waited)
            time.sleep(pause if timeout is None else min(pause, timeout - waited))
        return replies

    def _replies_to(self, identifier: str, node: int) -> list[Message] | None:
        """The reply to a question to a node; none where it cannot be used. None where it has not come."""
        try:
            found = list(self._grid.pull_messages([identifier]))
            # What the SuperLink says in a node's place, for example that it is gone, bears either number.
            own = [one for one in found if one.metadata.reply_to_message_id == identifier]
            own = [one for one in own if one.metadata.src_node_id in (node, SUPERLINK_NODE_ID)]
        except httpx.HTTPError:  # the SuperLink's, not the node's
            raise
        except Exception as error:  # whatever stands in a reply that no client of ours ever sent
            _LOG.warning("a reply of node %d cannot be read (%s)", node, type(error).__name__)
            return []
        if len(own) < len(found):
            _LOG.warning("a reply of node %d was in another one's name, or to another question", node)
        return own if found else None
