"""The last receipts outlive a run: the next one goes on from them, and shows each partner its own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.app import RecordDict

from server.app import run_federation
from server.checkpoints import Checkpoints
from server.receipts import ReceiptsFile, newest
from server.strategy import Outcome, TooFewClients
from shared import wire
from shared.errors import AuditError, StorageError
from shared.privacy.receipts import SignedReceipt, read_receipts, receipts_text
from simulations.in_process_grid import InProcessGrid
from tests.server.tiny_clients import DOMAINS, KEYS, TEXT, Fault, honest, intents, shown, small_config, tiny_app

CONFIG = small_config()


def receipt(client: int = 0, count: int = 1, **changes: object) -> SignedReceipt:
    said: dict[str, object] = {
        "domain": DOMAINS[client],
        "count_of_intents": count,
        "head_hash": f"{count:064x}",
        "payload_sha256": "b" * 64,
        "mechanism": "{}",
        "epsilon_spent": float(count),
    }
    return SignedReceipt.signed(KEYS[client], **(said | changes))


def federate(tmp_path: Path, name: str, *, fault: Fault = honest, resume: bool = False) -> Outcome:
    """One of several runs on the same disks, with the receipts in a file beside them."""
    folder, disks = tmp_path / name, tmp_path / "disks"
    folder.mkdir(exist_ok=True)
    disks.mkdir(exist_ok=True)
    grid = InProcessGrid(tiny_app(disks, fault), 3)
    receipts = tmp_path / "receipts.json"
    return run_federation(grid, CONFIG, folder, resume=resume, expected_clients=3, text_dimension=TEXT, receipts=receipts)


def refused(tmp_path: Path, name: str) -> list[list[dict[str, str]]]:
    return [json.loads(line)["refused"] for line in (tmp_path / name / "rounds.jsonl").read_text().splitlines()]


def test_each_round_brings_the_receipt_of_the_round_before_and_the_next_run_goes_on_from_the_last(tmp_path: Path) -> None:
    first = federate(tmp_path, "first")
    assert read_receipts(tmp_path / "receipts.json") == first.receipts
    second = federate(tmp_path, "second")
    for client, domain in enumerate(DOMAINS[:3]):
        texts = shown(tmp_path / "disks", client)
        assert [SignedReceipt.from_json(text).count_of_intents if text else 0 for text in texts] == [0, 1, 2, 3, 4, 5]
        assert {SignedReceipt.from_json(text).domain for text in texts[1:]} == {domain}  # nobody sees another's
        assert texts[3] == first.receipts[domain].to_json()
        assert second.receipts[domain].goes_on_from(first.receipts[domain])
    assert read_receipts(tmp_path / "receipts.json") == second.receipts
    assert refused(tmp_path, "second") == [[], [], []]


def test_a_partner_that_starts_over_in_a_later_run_is_left_out_and_its_receipt_is_kept(tmp_path: Path) -> None:
    first = federate(tmp_path, "first")
    (tmp_path / "disks" / "2.intents").unlink()  # ... an older copy, and a client that does not stop by itself
    second = federate(tmp_path, "second")
    assert refused(tmp_path, "second") == [[{"domain": "cameras", "code": "receipt"}]] * 3
    assert sorted(second.receipts) == ["arts", "books"]
    kept = read_receipts(tmp_path / "receipts.json")
    assert kept == second.receipts | {"cameras": first.receipts["cameras"]}


def test_another_key_in_a_later_run_is_not_taken_for_the_partner(tmp_path: Path) -> None:
    federate(tmp_path, "first")

    def forged(client: int, round: int, content: RecordDict) -> RecordDict:
        if client != 2 or round == 0:
            return content
        sent = wire.TransferUpdate.unpack(content)
        record = sent.receipt.to_record() | {"epsilon_spent": sent.receipt.epsilon_spent}
        del record["verify_key"], record["signature"]
        return sent.with_receipt(SignedReceipt.signed(KEYS[3], **record)).pack()

    federate(tmp_path, "second", fault=forged)
    assert refused(tmp_path, "second") == [[{"domain": "cameras", "code": "key"}]] * 3


def test_a_round_that_does_not_count_leaves_the_receipts_as_they_were(tmp_path: Path) -> None:
    def fails(client: int, round: int, content: RecordDict) -> RecordDict:
        return wire.Unavailable().pack() if client > 0 and round == 2 else content

    with pytest.raises(TooFewClients):
        federate(tmp_path, "run", fault=fails)
    assert intents(tmp_path / "disks", 0) == 2
    assert {r.count_of_intents for r in read_receipts(tmp_path / "receipts.json").values()} == {1}
    federate(tmp_path, "run", resume=True)
    assert {r.count_of_intents for r in read_receipts(tmp_path / "receipts.json").values()} == {3}


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_crash_between_checkpoint_and_receipts_is_made_good_on_resume(tmp_path: Path, left: int) -> None:
    outcome = federate(tmp_path, "run")
    path = tmp_path / "receipts.json"
    path.unlink()
    if left:
        older = Checkpoints(tmp_path / "run" / "transfer_layer").load(left)
        path.write_text(receipts_text(older.receipts.values()))
    assert federate(tmp_path, "run", resume=True).receipts == outcome.receipts
    assert read_receipts(path) == outcome.receipts


def test_receipts_that_are_ahead_of_a_damaged_checkpoint_are_not_set_back(tmp_path: Path) -> None:
    outcome = federate(tmp_path, "run")
    (tmp_path / "run" / "transfer_layer" / "round-0003.json").write_text("{}")
    again = federate(tmp_path, "run", resume=True)
    assert refused(tmp_path, "run") == [[], [], []]  # the same replies were sent again, and are about the same commits
    assert again.receipts == outcome.receipts == read_receipts(tmp_path / "receipts.json")


DAMAGES = {
    "half a file": lambda text: text[: len(text) // 2],
    "no receipts": lambda text: "{}",
    "less epsilon": lambda text: text.replace('"0x', '"0x0.', 1),
    "another count": lambda text: text.replace('"count_of_intents": 3', '"count_of_intents": 2'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_ends_the_run_before_anybody_is_asked(tmp_path: Path, damage: object) -> None:
    federate(tmp_path, "first")
    path = tmp_path / "receipts.json"
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(AuditError):
        federate(tmp_path, "second")
    assert intents(tmp_path / "disks", 0) == 3
    assert not (tmp_path / "second" / "rounds.jsonl").exists()


# --- the file ---


def test_the_newest_receipt_of_each_domain_is_kept_whoever_brings_it(tmp_path: Path) -> None:
    file = ReceiptsFile(tmp_path / "folder" / "receipts.json")
    assert file.load() == {}
    file.keep({"arts": receipt(count=2), "books": receipt(1, count=5)})
    file.keep({"arts": receipt(count=1), "cameras": receipt(2)})
    assert {domain: kept.count_of_intents for domain, kept in file.load().items()} == {"arts": 2, "books": 5, "cameras": 1}
    again = receipt(count=2, epsilon_spent=3.0)
    assert newest([receipt(count=2), again, receipt(count=1)]) == {"arts": again}


def test_runs_at_the_same_time_do_not_lose_one_anothers_receipts(tmp_path: Path) -> None:
    file = ReceiptsFile(tmp_path / "receipts.json")

    def rounds(client: int) -> None:
        for count in range(1, 11):
            file.keep({DOMAINS[client]: receipt(client, count)})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rounds, range(4)))
    assert {domain: kept.count_of_intents for domain, kept in file.load().items()} == dict.fromkeys(DOMAINS, 10)


def test_a_file_that_cannot_be_written_says_so_and_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        ReceiptsFile(tmp_path / "file" / "receipts.json").keep({"arts": receipt()})
