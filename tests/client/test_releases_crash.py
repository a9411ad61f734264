"""DP releases under kill -9: never two sets of noise for one debit, and never bytes without a debit."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.releases import Ask, release
from client.settings import ClientSettings
from shared.errors import StateError
from shared.privacy.ledger import read_events
from shared.privacy.manifest import read_manifest
from tests.client.kill_anywhere import killed
from tests.client.partner_world import World

USERS = Ask(purpose="count", noise_multiplier=30.0)


@pytest.mark.journey
def test_killed_before_any_change_on_the_disk_one_debit_makes_at_most_one_release(finished: World, tmp_path: Path) -> None:
    moments, copies = killed("releasing", finished.root, tmp_path / "copies", every=1)
    assert len(copies) == len(moments) > 5
    outcomes = []
    for at, root in sorted(copies.items()):
        settings = ClientSettings.read(root / "books/partner.toml")
        out, again = root / "users.json", root / "again.json"
        debited = any(event.kind == "release" for event in read_events(settings.ledger_path))
        kept = list(settings.at_home("released").glob("*.json"))
        assert not kept or debited
        assert not out.exists() or out.read_bytes() == kept[0].read_bytes()
        try:
            found = release(settings, USERS, out=again)
            outcomes.append("made" if found.new else "the same")
            assert found.new != debited, moments[at]
            assert not kept or found.data == kept[0].read_bytes()
            events = {event.hash for event in read_events(settings.ledger_path)}
            lines = [line for line in read_manifest(settings.at_home("egress.jsonl")).lines if line.kind == "release"]
            assert lines
            assert all(line.ledger_event in events for line in lines)
        except StateError:
            outcomes.append("lost")
            assert debited
            assert not kept
            assert not out.exists()
        assert sum(event.kind == "release" for event in read_events(settings.ledger_path)) == 1
    assert sorted(set(outcomes)) == ["lost", "made", "the same"]
    assert outcomes == sorted(outcomes, key=["made", "lost", "the same"].index)
