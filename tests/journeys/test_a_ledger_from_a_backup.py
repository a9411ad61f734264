"""A partner whose ledger came back from a backup stops by itself, in a later run too: nothing is booked or trained, nobody is told why."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from client.training import local_round
from server.receipts import RECEIPTS_FILE
from shared.errors import RolledBack, StateError
from shared.privacy.ledger import read_events
from shared.privacy.manifest import read_manifest
from shared.privacy.receipts import read_receipts
from simulations.scenario import _receipts
from tests.journeys.tiny_world import DOMAINS, World, tiny, world

pytestmark = pytest.mark.journey

OVERRIDES = tiny(ceiling__epsilon=100.0, aggregation__min_clients=2, aggregation__wait_s=1.0)
VICTIM, *OTHERS = DOMAINS


def settled(tmp_path: Path, name: str) -> World:
    return world(tmp_path / name, overrides=OVERRIDES, seed=len(name), ledgers=tmp_path / "ledgers")


def federate(run: World) -> list[dict[str, object]]:
    run.federate(receipts=_receipts(run.folder, run.settings))
    return [json.loads(line) for line in (run.folder.path / "rounds.jsonl").read_text().splitlines()]


def kinds(tmp_path: Path, domain: str) -> list[str]:
    return [event.kind for event in read_events(tmp_path / "ledgers" / f"{domain}.sqlite")]


def copy_ledger(source: Path, target: Path) -> None:
    """All files of one ledger, its mark included, as a backup of a whole disk would."""
    target.mkdir(exist_ok=True)
    for old in target.glob(f"{VICTIM}.sqlite*"):
        old.unlink()
    for path in source.glob(f"{VICTIM}.sqlite*"):
        shutil.copy2(path, target / path.name)


def test_a_ledger_from_a_backup_stops_its_partner_in_a_later_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledgers, backup = tmp_path / "ledgers", tmp_path / "backup"
    assert [line["refused"] for line in federate(settled(tmp_path, "first"))] == [[], []]
    copy_ledger(ledgers, backup)
    assert [line["refused"] for line in federate(settled(tmp_path, "second"))] == [[], []]  # the receipts of the first run were shown
    kept = read_receipts(ledgers / RECEIPTS_FILE)
    assert {receipt.count_of_intents for receipt in kept.values()} == {4}

    copy_ledger(backup, ledgers)
    third = settled(tmp_path, "third run")
    opened: list[str] = []
    plain = local_round.TrainingData.__init__

    def noting(self: local_round.TrainingData, **fields: object) -> None:
        opened.append(str(fields["domain"]))
        plain(self, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(local_round.TrainingData, "__init__", noting)
    with caplog.at_level(logging.ERROR, logger="isthmus.egress"):
        lines = federate(third)

    assert [line["refused"] for line in lines] == [[{"domain": VICTIM, "code": "unavailable"}]] * 2
    assert [line["replies"] for line in lines] == [sorted(OTHERS)] * 2
    assert sorted(set(opened)) == sorted(OTHERS)  # before any data of the victim were opened for training
    assert kinds(tmp_path, VICTIM) == ["genesis", "schedule", *["intent", "commit"] * 2, "schedule"]
    assert kinds(tmp_path, OTHERS[0]).count("intent") == 6
    assert not (third.folder.client(VICTIM) / "home" / "state").exists()
    causes = [record.cause for record in caplog.records if hasattr(record, "cause")]
    assert [type(cause) for cause in causes] == [RolledBack] * 2 + [StateError] * 2  # asked twice for a final head that it cannot fit
    train = [line for line in read_manifest(third.folder.client(VICTIM) / "home" / "egress.jsonl").lines if line.kind == "train"]
    assert [(line.event, line.schema) for line in train] == [("blocked", None), ("left", "Unavailable")] * 2
    assert read_receipts(ledgers / RECEIPTS_FILE)[VICTIM] == kept[VICTIM]
