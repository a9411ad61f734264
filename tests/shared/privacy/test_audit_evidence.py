"""What others hold against a ledger: the coordinator's receipts, the egress manifest, the signed head of a handed-over file."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import AuditError, ForeignReceipts, WrongKey
from shared.privacy.audit import verify
from shared.privacy.findings import Finding, Status, Verification
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_handover import hand_over
from shared.privacy.ledger_schema import NO_HASH, Event, canonical
from shared.privacy.manifest import ManifestLine, chained, encoded
from shared.privacy.mechanism import Mechanism
from shared.privacy.receipts import SignedReceipt, receipts_text
from shared.privacy.signing import SigningPair
from tests.shared.privacy.bookshop import KEYS, NEW_KEYS, STRANGER, by_force
from tests.shared.privacy.tampering import cut_off, rewrite

Make = Callable[..., Any]


def audit(path: Path, **more: Any) -> Verification:
    return verify(path, **{"key": KEYS.verify_key, **more})


def of_code(found: Verification, code: str) -> list[Finding]:
    return [one for one in found.findings if one.code == code]


def events_of(path: Path) -> list[Event]:
    with Ledger.open(path, read_only=True) as ledger:
        return list(ledger.events())


def receipt_of(path: Path, seq: int, *, signer: SigningPair = KEYS, **changes: Any) -> SignedReceipt:
    """The receipt of a commit, as the partner signed it then."""
    events = events_of(path)[:seq]
    commit = events[-1]
    with Ledger.open(path, read_only=True) as ledger:
        spent = ledger.epsilon_spent()
    intent = next(one for one in reversed(events) if one.kind == "intent")
    said = {
        "domain": "books",
        "count_of_intents": sum(one.kind == "intent" for one in events),
        "head_hash": commit.hash,
        "payload_sha256": commit.payload["payload_sha256"],
        "mechanism": canonical(intent.payload["mechanism"]),
        "epsilon_spent": spent,
    }
    return SignedReceipt.signed(signer, **{**said, **changes})


@pytest.fixture
def committed(path: Path, new_ledger: Make, admit: Make, do_round: Make) -> Path:
    """Genesis, schedule, and two rounds; event 4 and 6 are commits."""
    with new_ledger() as ledger:
        admit(ledger)
        do_round(ledger, 1)
        do_round(ledger, 2)
    return path


@pytest.fixture
def receipts(committed: Path, tmp_path: Path) -> Path:
    """The coordinator's file, with the receipt of the last commit."""
    return keep(tmp_path, receipt_of(committed, 6))


def keep(folder: Path, *receipts: SignedReceipt) -> Path:
    file = folder / "receipts.json"
    file.write_text(receipts_text(receipts))
    return file


# --- receipts ----------------------------------------------------------------------------------------------------------------------------
def test_with_the_last_receipt_the_ledger_is_complete_to_its_end(committed: Path, receipts: Path) -> None:
    found = audit(committed, receipts=receipts)
    assert found.status is Status.INTACT, found.findings
    assert (found.complete_to, found.proved_by) == (6, "receipts")
    assert "complete up to its last event" in of_code(found, "completeness")[0].what


def test_what_comes_after_the_last_receipt_is_not_provable(committed: Path, receipts: Path) -> None:
    with Ledger.open(committed, signer=KEYS) as ledger:
        ledger.note("after the receipt")
    found = audit(committed, receipts=receipts)
    assert found.status is Status.INTACT
    assert found.complete_to == 6
    assert "up to event 6" in of_code(found, "completeness")[0].what


@pytest.mark.parametrize("events", [1, 2, 3, 5])
def test_a_cut_off_end_is_found_with_receipts_and_only_with_them(committed: Path, receipts: Path, events: int) -> None:
    cut_off(committed, events)
    found = audit(committed, receipts=receipts)
    assert found.status is Status.ROLLED_BACK
    assert found.status.exit_code == 31
    assert found.complete_to is None
    without = audit(committed)
    assert without.status is Status.INTACT
    assert "not provable" in of_code(without, "completeness")[0].what


def test_a_ledger_from_a_backup_that_went_on_is_found(committed: Path, tmp_path: Path, intend: Make, do_round: Make) -> None:
    """As many events as before, and other ones."""
    receipts = keep(tmp_path, receipt_of(committed, 6))
    cut_off(committed, 2)
    (committed.parent / "ledger.sqlite.lock").unlink()
    with Ledger.open(committed, signer=KEYS) as ledger:
        ledger.note("the machine was set up anew")
        do_round(ledger, 2)
    assert audit(committed).status is Status.INTACT
    assert audit(committed, receipts=receipts).status is Status.ROLLED_BACK


def test_a_ledger_that_somebody_else_signed_anew_is_found_by_the_receipts(committed: Path, receipts: Path) -> None:
    rewrite(committed, from_seq=1, edit={1: {"verify_key": STRANGER.verify_key}}, signer=STRANGER)
    found = audit(committed, receipts=receipts)
    assert found.status is Status.BROKEN
    assert "signed it anew" in of_code(found, "signature")[0].what
    with pytest.raises(WrongKey):
        audit(committed)


@pytest.mark.parametrize(
    "changes",
    [{"count_of_intents": 1}, {"payload_sha256": "e" * 64}, {"mechanism": "{}"}, {"epsilon_spent": 0.01}, {"epsilon_spent": 7.0}],
)
def test_a_receipt_that_says_something_else_than_its_event_is_named(committed: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    found = audit(committed, receipts=keep(tmp_path, receipt_of(committed, 6, **changes)))
    assert (found.status, found.first_bad) == (Status.BROKEN, 6)
    assert next(iter(changes)) in of_code(found, "receipt")[0].what


def test_a_receipt_that_was_sent_again_later_is_no_contradiction(committed: Path, tmp_path: Path) -> None:
    """It names the earlier commit, with the epsilon of the later moment."""
    assert audit(committed, receipts=keep(tmp_path, receipt_of(committed, 4))).status is Status.INTACT


def test_receipts_of_another_partner_are_refused(committed: Path, tmp_path: Path) -> None:
    for other in (receipt_of(committed, 6, domain="films"), receipt_of(committed, 6, signer=STRANGER)):
        with pytest.raises(ForeignReceipts) as caught:
            audit(committed, receipts=keep(tmp_path, other))
        assert caught.value.exit_code == 25


def test_receipts_of_the_ledgers_own_key_and_a_wrong_key_are_a_wrong_key(committed: Path, receipts: Path) -> None:
    with pytest.raises(WrongKey):
        audit(committed, receipts=receipts, key=STRANGER.verify_key)


def test_receipts_that_were_changed_or_cannot_be_read_are_refused(committed: Path, receipts: Path) -> None:
    content = json.loads(receipts.read_text())
    content["receipts"][0]["count_of_intents"] = 1
    receipts.write_text(json.dumps(content))
    with pytest.raises(AuditError, match="changed") as caught:
        audit(committed, receipts=receipts)
    assert caught.value.exit_code == 23
    receipts.write_text("no receipts at all")
    with pytest.raises(AuditError):
        audit(committed, receipts=receipts)


def test_a_receipt_of_an_old_key_still_proves(committed: Path, receipts: Path) -> None:
    with Ledger.open(committed, signer=KEYS) as ledger:
        ledger.rotate_key(NEW_KEYS)
    found = audit(committed, receipts=receipts, key=NEW_KEYS.verify_key)
    assert found.status is Status.INTACT
    assert found.complete_to == 6


def test_the_receipt_of_a_lost_ledger_is_the_one_that_its_successor_cites(committed: Path, tmp_path: Path) -> None:
    receipt = receipt_of(committed, 6)
    (tmp_path / "new").mkdir()
    path = tmp_path / "new" / "ledger.sqlite"
    terms = {"ceiling_epsilon": 20.0, "delta": 1e-5, "set_by": "the bookshop", "booked_epsilon": 8.0, "booked_delta": 1e-5}
    Ledger.restart(path, signer=KEYS, domain="books", last_receipt=receipt.to_json(), **terms).close()
    found = audit(path, receipts=keep(tmp_path, receipt))
    assert found.status is Status.RAISED
    assert found.complete_to == 1
    assert of_code(found, "key") == []


def test_after_a_rotation_and_a_loss_the_receipt_of_the_old_key_is_taken_with_a_remark(committed: Path, tmp_path: Path) -> None:
    """The new ledger never had the old key; that its genesis cites this very receipt is what ties the two together."""
    receipt = receipt_of(committed, 6)
    (tmp_path / "new").mkdir()
    path = tmp_path / "new" / "ledger.sqlite"
    terms = {"ceiling_epsilon": 20.0, "delta": 1e-5, "set_by": "the bookshop", "booked_epsilon": 8.0, "booked_delta": 1e-5}
    Ledger.restart(path, signer=NEW_KEYS, domain="books", last_receipt=receipt.to_json(), **terms).close()
    for more in ({}, {"receipts": keep(tmp_path, receipt)}):
        found = audit(path, key=NEW_KEYS.verify_key, **more)
        assert (found.status, found.complete_to) == (Status.RAISED, 1 if more else None)
        [remark] = of_code(found, "key")
        assert KEYS.verify_key in remark.what
    with pytest.raises(ForeignReceipts):  # of the old key too, and not the one that is cited
        audit(path, key=NEW_KEYS.verify_key, receipts=keep(tmp_path, receipt_of(committed, 4)))
    with pytest.raises(WrongKey):  # whoever begins anew with a key of their own is not the owner of the old one
        audit(path, receipts=keep(tmp_path, receipt))


# --- the manifest ------------------------------------------------------------------------------------------------------------------------
def lines_for(path: Path) -> Iterator[ManifestLine]:
    yield ManifestLine(event="left", time_utc="2031-01-01T00:00:00Z", kind="query.hello", why="no data", schema="HelloReply", bytes=9)
    for event in events_of(path):
        if event.kind == "commit":
            yield update(event.payload["round"], event.hash)


def update(round: int | None, ledger_event: str | None) -> ManifestLine:
    said = {"kind": "train", "why": "private steps", "schema": "TransferUpdate", "bytes": 4096, "sha256": "a" * 64}
    return ManifestLine(event="left", time_utc="2031-01-01T00:00:00Z", round=round, ledger_event=ledger_event, **said)


def manifest_of(folder: Path, lines: list[ManifestLine]) -> Path:
    file, previous = folder / "egress.jsonl", NO_HASH
    with file.open("wb") as out:
        for line in lines:
            linked = chained(line, previous)
            previous = linked.hash
            out.write(encoded(linked))
    return file


def test_a_manifest_that_fits_is_compared_line_by_line(committed: Path, tmp_path: Path) -> None:
    found = audit(committed, manifest=manifest_of(tmp_path, list(lines_for(committed))))
    assert found.status is Status.INTACT, found.findings
    assert found.manifest_lines == 3
    assert not of_code(found, "gap")


def test_an_update_that_left_without_a_commit_is_broken(committed: Path, tmp_path: Path) -> None:
    lines = [*lines_for(committed), update(3, "f" * 64)]
    found = audit(committed, manifest=manifest_of(tmp_path, lines))
    assert found.status is Status.BROKEN
    assert "line 4" in of_code(found, "manifest")[0].what


def test_an_update_that_names_no_commit_is_broken(committed: Path, tmp_path: Path) -> None:
    found = audit(committed, manifest=manifest_of(tmp_path, [*lines_for(committed), update(3, None)]))
    assert found.status is Status.BROKEN


def test_an_update_of_another_round_than_its_commit_is_broken(committed: Path, tmp_path: Path) -> None:
    hello, one, two = lines_for(committed)
    found = audit(committed, manifest=manifest_of(tmp_path, [hello, one, update(1, two.ledger_event)]))
    assert found.status is Status.BROKEN


def test_a_commit_without_a_line_is_a_gap_and_not_broken(committed: Path, tmp_path: Path) -> None:
    """A crash between the two does that: what was booked did not leave."""
    found = audit(committed, manifest=manifest_of(tmp_path, list(lines_for(committed))[:2]))
    assert found.status is Status.INTACT
    (gap,) = of_code(found, "gap")
    assert gap.event == 6


def test_an_answer_that_was_sent_twice_is_no_gap(committed: Path, tmp_path: Path) -> None:
    lines = list(lines_for(committed))
    found = audit(committed, manifest=manifest_of(tmp_path, [*lines, lines[-1]]))
    assert found.status is Status.INTACT
    assert not of_code(found, "gap")


def test_every_byte_of_the_manifest_counts(committed: Path, tmp_path: Path) -> None:
    whole = manifest_of(tmp_path, list(lines_for(committed)))
    data = whole.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1  # the last line may be cut off by a crash; then it is a gap
    for at in range(0, last, 7):
        changed = tmp_path / "changed.jsonl"
        changed.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert audit(committed, manifest=changed).status is Status.BROKEN, f"byte {at}"


def test_with_a_proof_of_the_rollback_lines_without_commits_are_part_of_it(committed: Path, receipts: Path, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, list(lines_for(committed)))
    cut_off(committed, 2)
    assert audit(committed, receipts=receipts, manifest=manifest).status is Status.ROLLED_BACK
    assert audit(committed, manifest=manifest).status is Status.BROKEN


def test_a_release_that_was_paid_for_may_leave_and_an_update_may_not_leave_on_its_account(committed: Path, tmp_path: Path) -> None:
    count = Mechanism(kind="gaussian", sampling_rate=1.0, noise_multiplier=50.0, clip_norm=1.0, grid=1.0, dimension=1, steps=1)
    with Ledger.open(committed, signer=KEYS) as ledger:
        paid = ledger.release(release_id="people", purpose="count", mechanism=count, config_hash="c" * 64)
    lines = list(lines_for(committed))
    assert audit(committed, manifest=manifest_of(tmp_path, lines)).status is Status.INTACT  # it has not left yet
    release = dataclasses.replace(update(None, paid.hash), kind="release", schema="Release", why="a mechanism of its own")
    assert audit(committed, manifest=manifest_of(tmp_path, [*lines, release])).status is Status.INTACT
    found = audit(committed, manifest=manifest_of(tmp_path, [*lines, update(3, paid.hash)]))
    assert found.status is Status.BROKEN
    assert "is a release and no commit" in of_code(found, "manifest")[0].what


def test_a_manifest_that_is_not_there_is_refused(committed: Path, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="manifest"):
        audit(committed, manifest=tmp_path / "nothing")


# --- the signed head ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def handed(committed: Path, tmp_path: Path) -> Path:
    hand_over(committed, tmp_path / "handed.sqlite", signer=KEYS)
    return tmp_path / "handed.sqlite"


def test_an_end_that_is_cut_off_a_handed_over_file_is_found(handed: Path) -> None:
    cut_off(handed)
    found = audit(handed)
    assert found.status is Status.ROLLED_BACK
    assert "event 6 was its last" in of_code(found, "head")[0].what


def test_a_head_that_was_changed_is_found(handed: Path) -> None:
    for change in ("exported_utc = '2031-01-01T00:00:00.000000Z'", "seq = 5", "hash = (SELECT hash FROM events WHERE seq = 5)"):
        copy = handed.with_name("copy.sqlite")
        shutil.copy(handed, copy)
        with sqlite3.connect(copy) as database:
            database.execute(f"UPDATE head SET {change}")
        database.close()
        found = audit(copy)
        assert found.status is Status.BROKEN, change
        assert of_code(found, "head")


def test_an_event_that_was_added_to_a_handed_over_file_is_found(handed: Path, forge: Make) -> None:
    forge(handed, "note", {"text": "added by the owner, after the hand-over"})
    assert audit(handed).status is Status.BROKEN


def test_receipts_prove_more_than_the_head(handed: Path, receipts: Path) -> None:
    found = audit(handed, receipts=receipts)
    assert (found.complete_to, found.proved_by) == (6, "receipts")


def test_what_the_owner_signed_after_the_last_receipt_is_not_said_to_be_proved_by_it(
    committed: Path, receipts: Path, tmp_path: Path
) -> None:
    with Ledger.open(committed, signer=KEYS) as ledger:
        ledger.note("the season is over")
    to = tmp_path / "handed.sqlite"
    hand_over(committed, to, signer=KEYS)
    found = audit(to, receipts=receipts)
    assert (found.complete_to, found.proved_by) == (7, "signed head")
    (said,) = of_code(found, "completeness")
    assert "complete up to event 6, by the coordinator's receipt" in said.what
    assert "the owner signed event 7" in said.what


def test_a_removed_head_leaves_only_the_receipts(handed: Path, receipts: Path) -> None:
    by_force(handed, "DELETE FROM events WHERE seq = 6")
    with sqlite3.connect(handed) as database:
        database.execute("DROP TABLE head")
    database.close()
    assert audit(handed).status is Status.INTACT
    assert audit(handed, receipts=receipts).status is Status.ROLLED_BACK
