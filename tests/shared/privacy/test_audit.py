"""An auditor has the file and a public key: what holds, what does not, and which event is the first bad one."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import AuditError, EmptyLedger, LedgerError, LedgerLocked, NewerLedger, NotALedger, UnknownEvent, WrongKey
from shared.privacy.audit import verify
from shared.privacy.audit_words import verification_document, verification_words
from shared.privacy.findings import Status, Verification
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_handover import hand_over
from shared.privacy.mechanism import Mechanism
from shared.privacy.signing import SigningPair
from tests.shared.privacy.bookshop import KEYS, STRANGER, by_force
from tests.shared.privacy.tampering import rewrite

Make = Callable[..., Any]


def audit(path: Path, key: str | None = KEYS.verify_key, **more: Any) -> Verification:
    return verify(path, key=key, **more)


def codes(found: Verification) -> set[str]:
    return {one.code for one in found.findings}


def everything_in(folder: Path) -> dict[str, tuple[str, int]]:
    """Bytes and time of change of every file of a folder."""
    files = {one.name: one for one in folder.iterdir()}
    return {name: (hashlib.sha256(one.read_bytes()).hexdigest(), one.stat().st_mtime_ns) for name, one in files.items()}


def test_a_ledger_that_holds_is_intact(written: Path) -> None:
    found = audit(written)
    assert found.status is Status.INTACT
    assert found.status.exit_code == 0
    assert (found.domain, found.events, found.intents, found.commits) == ("books", 5, 2, 1)
    assert found.keys == (KEYS.verify_key,)
    assert found.signed_from == 1
    assert (found.decided_by, found.claim_is, found.epsilon_claimed) == ("pld", "spent", found.epsilon_spent)
    assert 0 < found.epsilon_spent < found.ceiling_epsilon == found.genesis_ceiling == 8.0
    assert found.first_bad is None


def test_without_receipts_the_audit_says_that_the_end_is_not_provable(written: Path) -> None:
    said = [one for one in audit(written).findings if one.code == "completeness"]
    assert len(said) == 1
    assert "not provable" in said[0].what
    assert audit(written).complete_to is None


@pytest.mark.parametrize("ahead", [False, True])
def test_the_ledger_and_its_folder_stay_as_they_are(written: Path, tmp_path: Path, new_ledger: Make, ahead: bool) -> None:
    path = written
    if ahead:  # a writer was killed and left its write-ahead part
        folder = tmp_path / "killed"
        folder.mkdir()
        with Ledger.open(written, signer=KEYS) as ledger:
            ledger.note("still ahead")
            for one in tmp_path.glob("ledger.sqlite*"):
                shutil.copy(one, folder)
        path = folder / "ledger.sqlite"
        assert path.with_name("ledger.sqlite-wal").stat().st_size > 0
    before = everything_in(path.parent)
    assert audit(path).events == (6 if ahead else 5)
    assert everything_in(path.parent) == before


def test_a_folder_that_cannot_be_written_is_enough(written: Path) -> None:
    before = everything_in(written.parent)
    written.chmod(0o400)
    written.parent.chmod(0o500)
    try:
        assert audit(written).status is Status.INTACT
    finally:
        written.parent.chmod(0o700)
    assert everything_in(written.parent) == before


def test_a_handed_over_file_is_complete_as_far_as_its_owner_signed(written: Path, tmp_path: Path) -> None:
    head = hand_over(written, tmp_path / "handed.sqlite", signer=KEYS)
    found = audit(tmp_path / "handed.sqlite")
    assert found.status is Status.INTACT
    assert (found.complete_to, found.proved_by) == (head.seq, "signed head") == (5, "signed head")


# --- changes by somebody without the key -------------------------------------------------------------------------------------------------
def test_an_event_in_the_middle_that_is_removed_is_named(written: Path) -> None:
    by_force(written, "DELETE FROM events WHERE seq = 3")
    found = audit(written)
    assert found.status is Status.BROKEN
    assert found.status.exit_code == 30
    assert found.first_bad == 3


def test_two_events_that_changed_places_are_named(written: Path) -> None:
    swap = (
        "UPDATE events SET seq = -4 WHERE seq = 4",
        "UPDATE events SET seq = 4 WHERE seq = 5",
        "UPDATE events SET seq = 5 WHERE seq = -4",
    )
    by_force(written, *swap)
    assert audit(written).first_bad == 4


def test_an_edited_event_is_named_even_where_the_chain_was_mended(written: Path) -> None:
    rewrite(written, from_seq=4, edit={4: {"payload_sha256": "e" * 64}}, signer=None)
    found = audit(written)
    assert found.status is Status.BROKEN
    assert found.first_bad == 4
    assert "signature" in codes(found)


def test_events_signed_anew_with_another_key_are_named(written: Path) -> None:
    """The thief cannot write the event that would make its key the key in force."""
    rewrite(written, from_seq=3, signer=STRANGER)
    found = audit(written)
    assert (found.status, found.first_bad) == (Status.BROKEN, 3)


def test_a_ledger_signed_anew_from_its_genesis_on_is_not_this_partners(written: Path) -> None:
    rewrite(written, from_seq=1, edit={1: {"verify_key": STRANGER.verify_key}}, signer=STRANGER)
    assert audit(written, STRANGER.verify_key).status is Status.INTACT  # it holds in itself: only the partner's key tells
    with pytest.raises(WrongKey, match="receipts"):
        audit(written)


def test_without_any_key_nothing_is_vouched_for(written: Path) -> None:
    found = audit(written, None)
    assert found.status is Status.NOT_VERIFIABLE
    assert "key" in codes(found)


@pytest.mark.parametrize("key", ["", "a" * 63, "A" * 64, "not hex" * 10])
def test_a_key_that_is_none_is_refused(written: Path, key: str) -> None:
    with pytest.raises(AuditError, match="32 bytes"):
        audit(written, key)


# --- keys that follow one another --------------------------------------------------------------------------------------------------------
def test_a_changed_key_is_followed(path: Path, new_ledger: Make, admit: Make, do_round: Make) -> None:
    second = SigningPair.generate()
    with new_ledger() as ledger:
        admit(ledger)
        do_round(ledger, 1)
        ledger.rotate_key(second)
        do_round(ledger, 2)
    found = audit(path, second.verify_key)
    assert found.status is Status.INTACT
    assert found.keys == (KEYS.verify_key, second.verify_key)
    old = audit(path)
    assert old.status is Status.INTACT
    assert any("replaced" in one.what for one in old.findings if one.code == "key")


def test_an_event_after_the_change_that_the_old_key_signed_is_named(path: Path, new_ledger: Make) -> None:
    second = SigningPair.generate()
    with new_ledger() as ledger:
        ledger.rotate_key(second)
        ledger.note("after the change")
    rewrite(path, from_seq=3, signer=KEYS)
    found = audit(path, second.verify_key)
    assert (found.status, found.first_bad) == (Status.BROKEN, 3)


def test_an_unsigned_ledger_is_not_verifiable(old: Path) -> None:
    """Its numbers hold, by the accountants of today; but whoever can write the file can change all of it."""
    found = audit(old)
    assert found.status is Status.NOT_VERIFIABLE
    assert found.keys == ()
    assert "unsigned" in codes(found)
    assert not codes(found) & {"chain", "number", "signature"}


def test_an_upgraded_ledger_says_what_is_from_before_it_was_signed(old: Path) -> None:
    Ledger.upgrade(old, signer=KEYS, why="this release signs its ledgers")
    found = audit(old)
    assert found.status is Status.RAISED  # as it was raised before
    assert found.signed_from == found.events
    assert next(one for one in found.findings if one.code == "unsigned").event == found.events - 1
    with pytest.raises(WrongKey):
        audit(old, STRANGER.verify_key)


# --- what the ledger itself says ---------------------------------------------------------------------------------------------------------
def test_a_raised_ceiling_is_a_verdict_of_its_own(path: Path, new_ledger: Make, admit: Make, do_round: Make) -> None:
    with new_ledger() as ledger:
        admit(ledger)
        do_round(ledger, 1)
        ledger.raise_ceiling(9.5, raised_by="the board", why="one more season")
    found = audit(path)
    assert found.status is Status.RAISED
    assert found.status.exit_code == 33
    assert (found.genesis_ceiling, found.ceiling_epsilon) == (8.0, 9.5)
    assert found.decided_by == "rdp-filter"
    raised = next(one for one in found.findings if one.code == "raised")
    assert "the board" in raised.what
    assert "one more season" in raised.what


def test_a_booked_ledger_is_a_verdict_of_its_own(path: Path) -> None:
    booked = {"booked_epsilon": 3.0, "booked_delta": 1e-6, "last_receipt": None}
    Ledger.restart(path, signer=KEYS, domain="books", ceiling_epsilon=8.0, delta=1e-5, set_by="the bookshop", **booked).close()
    found = audit(path)
    assert found.status is Status.RAISED
    assert found.epsilon_spent == found.booked_epsilon == 3.0
    assert found.claimed_delta == pytest.approx(1.1e-5)
    assert "booked" in codes(found)


def test_a_ledger_that_protects_nobody_is_not_verifiable(path: Path, new_ledger: Make, gaussian: Make, admit: Make, intend: Make) -> None:
    nothing = gaussian(kind="none", sampling_rate=0.0, noise_multiplier=0.0, clip_norm=0.0, grid=0.0)
    with new_ledger(private=False) as ledger:
        admit(ledger, mechanism=nothing)
        intend(ledger, mechanism=nothing)
    found = audit(path)
    assert found.status is Status.NOT_VERIFIABLE
    assert (found.decided_by, found.claim_is, found.epsilon_claimed) == ("none", None, None)
    assert "not-private" in codes(found)


def test_two_runs_are_decided_by_the_filter_and_hold(path: Path, new_ledger: Make, admit: Make, do_round: Make) -> None:
    with new_ledger(ceiling_epsilon=6.0) as ledger:
        admit(ledger)
        do_round(ledger, 1)
        ledger.end_run("autumn")
        admit(ledger, run_id="winter", rounds=2)
        do_round(ledger, 1, run_id="winter")
        spent = ledger.epsilon_spent()
    found = audit(path)
    assert found.status is Status.INTACT, found.findings
    assert found.decided_by == "rdp-filter"
    assert (found.claim_is, found.epsilon_claimed) == ("ceiling", found.ceiling_epsilon)  # what is spent is information
    said = verification_document(found)
    assert (said["claim_is"], said["epsilon_claimed"]) == ("ceiling", found.ceiling_epsilon)
    assert f"epsilon claimed   {found.ceiling_epsilon:g}, the ceiling" in verification_words(found)
    assert found.epsilon_spent == spent


def test_releases_refusals_and_verdicts_hold_and_are_counted(path: Path, new_ledger: Make, admit: Make, gaussian: Make) -> None:
    one = gaussian(kind="gaussian", sampling_rate=1.0, noise_multiplier=20.0, steps=1)
    with new_ledger() as ledger:
        admit(ledger)
        ledger.release(release_id="popularity-1", purpose="popularity", mechanism=one, config_hash="c" * 64)
        with pytest.raises(LedgerError):
            admit(ledger, run_id="too much", rounds=1000)
        ledger.audited(tier=1, verdict="passed", code_digest="b" * 64, code_version="0.1.0", summary="{}", report_sha256="d" * 64)
    found = audit(path)
    assert found.status is Status.INTACT, found.findings
    assert (found.releases, found.refused) == (1, 1)
    assert {"refused", "audit"} <= codes(found)


# --- what no run could have written, by the owner of the key -----------------------------------------------------------------------------
def schedule(mechanism: Mechanism, **changes: Any) -> dict[str, Any]:
    plan = {"run_id": "autumn", "config_hash": "c" * 64, "mechanism": mechanism.to_record(), "rounds": 3, "reserve": 1}
    made = {
        "permitted_intents": 4,
        "decided_by": "pld",
        "epsilon_reserved": (1.5).hex(),
        "filter_order": (8.0).hex(),
        "plan_signature": None,
    }
    return {**plan, **made, **changes}


@pytest.mark.parametrize(
    ("field", "value"),
    [("epsilon_reserved", (0.01).hex()), ("epsilon_reserved", (7.9).hex()), ("decided_by", "rdp-filter"), ("decided_by", "none")],
)
def test_a_recorded_number_that_its_events_do_not_give_is_named(written: Path, field: str, value: str) -> None:
    rewrite(written, from_seq=2, edit={2: {field: value}}, signer=KEYS)
    found = audit(written)
    assert (found.status, found.first_bad) == (Status.BROKEN, 2)
    assert "number" in codes(found)


def test_a_rewritten_ledger_that_changes_nothing_holds(written: Path) -> None:
    """So what the test above finds is the number, not the rewriting."""
    rewrite(written, from_seq=2, signer=KEYS)
    assert audit(written).status is Status.INTACT


def test_a_plan_that_was_admitted_above_the_ceiling_is_exceeded(path: Path, new_ledger: Make, forge: Make, gaussian: Make) -> None:
    with new_ledger(ceiling_epsilon=0.5):
        pass
    forge(path, "schedule", schedule(gaussian()))
    found = audit(path)
    assert found.status is Status.EXCEEDED
    assert found.status.exit_code == 32
    assert next(one for one in found.findings if one.code == "ceiling").event == 2


def test_intents_above_the_ceiling_are_exceeded(path: Path, new_ledger: Make, forge: Make, gaussian: Make) -> None:
    with new_ledger(ceiling_epsilon=0.5):
        pass
    forge(path, "schedule", schedule(gaussian()))
    intent = {"run_id": "autumn", "round": 1, "attempt": 1, "mechanism": gaussian().to_record(), "config_hash": "c" * 64}
    forge(path, "intent", {**intent, "bundle_digest": "b" * 64, "code_version": "0.1.0"})
    found = audit(path)
    assert found.status is Status.EXCEEDED
    assert any(one.code == "ceiling" and one.event is None for one in found.findings)
    assert found.epsilon_spent > found.ceiling_epsilon


def test_a_raise_that_hides_what_was_spent_is_named(path: Path, new_ledger: Make, admit: Make, do_round: Make, forge: Make) -> None:
    with new_ledger() as ledger:
        admit(ledger)
        do_round(ledger, 1)
    raised = {"previous_epsilon": (8.0).hex(), "ceiling_epsilon": (9.0).hex(), "epsilon_spent": (0.0).hex()}
    forge(path, "ceiling", {**raised, "raised_by": "somebody", "why": "no reason"})
    found = audit(path)
    assert (found.status, found.first_bad) == (Status.BROKEN, 5)


def test_an_order_that_no_divergence_has_is_named(path: Path, new_ledger: Make, forge: Make, gaussian: Make) -> None:
    with new_ledger():
        pass
    forge(path, "schedule", schedule(gaussian(), filter_order=(1.0).hex()))
    assert audit(path).first_bad == 2


def test_steps_beyond_every_count_are_named_not_computed(path: Path, new_ledger: Make, forge: Make, gaussian: Make) -> None:
    with new_ledger():
        pass
    forge(path, "schedule", schedule(gaussian(steps=2**53), rounds=2**20, permitted_intents=2**20 + 1))
    assert audit(path).first_bad == 2


# --- files that are no ledger, each with its reason --------------------------------------------------------------------------------------
def test_no_file_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger"):
        audit(tmp_path / "nothing")


def test_a_file_of_something_else_is_no_ledger(tmp_path: Path) -> None:
    text, database = tmp_path / "letter.txt", tmp_path / "shop.sqlite"
    text.write_text("Dear auditor, " * 400)
    with sqlite3.connect(database) as shop:
        shop.execute("CREATE TABLE books (title TEXT)")
    shop.close()
    for one in (text, database):
        before = one.read_bytes()
        with pytest.raises(NotALedger) as caught:
            audit(one)
        assert caught.value.exit_code == 18
        assert one.read_bytes() == before


def test_an_empty_file_and_one_without_genesis_are_empty(written: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    by_force(written, "DELETE FROM events")
    for path in (tmp_path / "empty", written):
        with pytest.raises(EmptyLedger) as caught:
            audit(path)
        assert caught.value.exit_code == 19


def test_a_newer_format_is_refused(written: Path) -> None:
    with sqlite3.connect(written) as database:
        database.execute("PRAGMA user_version=3")
    database.close()
    with pytest.raises(NewerLedger) as caught:
        audit(written)
    assert caught.value.exit_code == 20


def test_an_older_format_than_its_events_name_is_broken(written: Path) -> None:
    with sqlite3.connect(written) as database:
        database.execute("PRAGMA user_version=1")
    database.close()
    assert audit(written).status is Status.BROKEN


def test_an_event_of_unknown_kind_is_refused(written: Path, forge: Make) -> None:
    forge(written, "donation", {"text": "what might this cost?"})
    with pytest.raises(UnknownEvent, match="event 6") as caught:
        audit(written)
    assert caught.value.exit_code == 21


def test_a_ledger_that_is_being_written_has_to_be_handed_over(written: Path) -> None:
    with Ledger.open(written, signer=KEYS) as ledger:
        ledger.note("in the write-ahead part")
        with pytest.raises(LedgerLocked, match="writing"):
            audit(written)
