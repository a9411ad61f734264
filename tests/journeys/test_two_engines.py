"""The same apps in this process and in Flower's Ray engine: one transfer layer, and no row on Ray's wire either."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.serverapp import Grid

from client.settings import ClientSettings
from shared.privacy.ledger import read_events
from simulations import federation
from tests.journeys.marked_world import Wire, all_secrets, leaks, marked_world
from tests.journeys.tiny_world import DOMAINS, NO_NOISE, farthest

pytestmark = pytest.mark.journey


class ListeningGrid:
    """Stands between the coordinator and the engine's own grid, and shows what passes."""

    def __init__(self, grid: Grid, seen: Wire) -> None:
        self._grid, self._seen = grid, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        identifiers = list(self._grid.push_messages(sent))
        for message in sent:
            self._seen("down", 0, message_to_proto(message).SerializeToString(deterministic=True))
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        got = list(self._grid.pull_messages(message_ids))
        for message in got:
            self._seen("up", 0, message_to_proto(message).SerializeToString(deterministic=True))
        return got


def test_both_engines_give_one_transfer_layer_and_no_row_leaves_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, stoppable = Wire(), federation._StoppableGrid
    monkeypatch.setattr(federation, "_StoppableGrid", lambda grid, stop: stoppable(ListeningGrid(grid, seen), stop))
    here, there = (marked_world(tmp_path, name, **NO_NOISE) for name in ("in-process", "ray"))
    one = here.federate("in-process")
    other = there.federate("ray")
    difference = farthest(one.layer, other.layer)
    print(f"largest difference of a coordinate: {difference:.1e}; {len(seen.messages)} messages on Ray")
    assert difference <= 1e-6
    assert max(abs(array).max() for array in one.layer.values()) > 0.01  # a layer that was trained at all
    assert (one.domains, one.round, other.domains, other.round) == (DOMAINS, 2, DOMAINS, 2)
    assert one.space.version == other.space.version
    assert len(seen.messages) == 3 * 2 * 7
    assert leaks(seen.messages, all_secrets(there)) == set()
    for mine, theirs in zip(here.settings, there.settings, strict=True):
        assert commits(mine) == commits(theirs)


def commits(settings: ClientSettings) -> list[int]:
    """Rounds in the order of their commits."""
    return [event.payload["round"] for event in read_events(settings.ledger_path) if event.kind == "commit"]
