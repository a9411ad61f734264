"""Flower's grid, asked for replies as often as it makes sense, where Flower looks every 3 s."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from shared.polling import pause_s


class PromptGrid(Grid):
    """A grid around another one; only `send_and_receive` is its own.

    Args:
        grid: Flower's own.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Any:
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Sends messages, and returns the replies that came in time.

        Args:
            timeout: seconds; None waits for all of them.
        """
        missing = {identifier for identifier in self._grid.push_messages(list(messages)) if identifier}
        begun = time.monotonic()
        replies: list[Message] = []
        while missing:
            new = list(self._grid.pull_messages(missing))
            replies += new
            missing -= {reply.metadata.reply_to_message_id for reply in new}
            waited = time.monotonic() - begun
            if not missing or (timeout is not None and waited >= timeout):
                break
            pause = pause_s(waited)
            time.sleep(pause if timeout is None else min(pause, timeout - waited))
        return replies
