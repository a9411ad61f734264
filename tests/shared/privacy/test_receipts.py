"""Receipts: what a partner signed is read back exactly, and nothing else passes for it."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.errors import AuditError
from shared.privacy.receipts import SignedReceipt, is_receipt_text, read_receipts, receipts_text
from shared.privacy.signing import SigningPair, event_message
from shared.wire_rules import canonical_json

KEY = SigningPair(b"k" * 32)
SAID: dict[str, Any] = {
    "domain": "books",
    "count_of_intents": 3,
    "head_hash": "a" * 64,
    "payload_sha256": "b" * 64,
    "mechanism": canonical_json({"kind": "gaussian", "steps": 2}),
    "epsilon_spent": 1.5,
}


def receipt(key: SigningPair = KEY, **changes: Any) -> SignedReceipt:
    return SignedReceipt.signed(key, **(SAID | changes))


_HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
_RECEIPTS = st.builds(
    receipt,
    st.binary(min_size=32, max_size=32).map(SigningPair),
    domain=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True),
    count_of_intents=st.integers(0, 2**53),
    head_hash=_HEX,
    payload_sha256=_HEX,
    mechanism=st.dictionaries(st.text(max_size=8), st.text(max_size=8) | st.integers(-(2**60), 2**60), max_size=5).map(canonical_json),
    epsilon_spent=st.floats(min_value=0.0, allow_nan=False).map(abs),
)


@given(_RECEIPTS)
def test_every_receipt_is_read_back_exactly_and_holds(made: SignedReceipt) -> None:
    read = SignedReceipt.from_json(made.to_json())
    assert (read, read.epsilon_spent.hex(), read.holds()) == (made, made.epsilon_spent.hex(), True)
    assert is_receipt_text(made.to_json())


@given(_RECEIPTS, st.data())
def test_any_changed_character_is_refused_or_the_signature_no_longer_holds(made: SignedReceipt, data: st.DataObject) -> None:
    text = made.to_json()
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="utf-8"))
    assume(other != text[at])
    try:
        changed = SignedReceipt.from_json(text[:at] + other + text[at + 1 :])
    except AuditError:
        return
    assert not changed.holds()


CHANGES: dict[str, object] = {
    "domain": "films",
    "count_of_intents": 4,
    "head_hash": "c" * 64,
    "payload_sha256": "c" * 64,
    "mechanism": canonical_json({"kind": "gaussian", "steps": 1}),
    "epsilon_spent": math.nextafter(1.5, 0.0),
    "verify_key": SigningPair(b"o" * 32).verify_key,
}


@pytest.mark.parametrize(("field", "value"), CHANGES.items(), ids=CHANGES.keys())
def test_the_signature_covers(field: str, value: object) -> None:
    assert receipt().holds()
    assert not dataclasses.replace(receipt(), **{field: value}).holds()


def test_a_signature_for_another_purpose_is_no_signature_of_a_receipt() -> None:
    borrowed = KEY.sign(event_message("a" * 64)).hex()
    assert not dataclasses.replace(receipt(), signature=borrowed).holds()
    assert not dataclasses.replace(receipt(), signature="zz" * 64).holds()


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "a missing field": lambda r: {name: value for name, value in r.items() if name != "signature"},
    "a field more": lambda r: r | {"users": 4711},
    "epsilon as a number": lambda r: r | {"epsilon_spent": 1.5},
    "epsilon in another spelling": lambda r: r | {"epsilon_spent": "0x1.8p0"},
    "an epsilon that is not a number": lambda r: r | {"epsilon_spent": "nan"},
    "a negative epsilon": lambda r: r | {"epsilon_spent": (-1.5).hex()},
    "minus zero": lambda r: r | {"epsilon_spent": (-0.0).hex()},
    "a count that is true": lambda r: r | {"count_of_intents": True},
    "a negative count": lambda r: r | {"count_of_intents": -1},
    "a short hash": lambda r: r | {"head_hash": "ab"},
    "a hash in capitals": lambda r: r | {"payload_sha256": "A" * 64},
    "a short signature": lambda r: r | {"signature": "00"},
    "a domain with a path in it": lambda r: r | {"domain": "../books"},
    "a mechanism with a list in it": lambda r: r | {"mechanism": '{"users":[1]}'},
    "a list": lambda r: [r],
    "nothing": lambda r: None,
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_receipt_is_refused_that_has(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    record = change(dict(receipt().to_record()))
    with pytest.raises(AuditError):
        SignedReceipt.from_json(json.dumps(record, sort_keys=True, separators=(",", ":")))
    (tmp_path / "receipts.json").write_text(json.dumps({"format": "isthmus-receipts-1", "receipts": [record]}))
    with pytest.raises(AuditError):
        read_receipts(tmp_path / "receipts.json")


def test_one_receipt_has_one_text() -> None:
    text = receipt().to_json()
    for other in (
        text.replace('"domain":', '"domain": '),
        text + "\n",
        json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")),
    ):
        with pytest.raises(AuditError, match="canonical"):
            SignedReceipt.from_json(other)
    assert not is_receipt_text(text + " " * 4096)
    assert not is_receipt_text(None)


# --- one after the other ---

FIRST = receipt()
LATER = {
    "more intents": (receipt(count_of_intents=4, head_hash="c" * 64), True),
    "more of everything": (receipt(count_of_intents=9, head_hash="c" * 64, epsilon_spent=math.inf), True),
    "the same count": (receipt(head_hash="c" * 64), False),
    "fewer intents": (receipt(count_of_intents=2, head_hash="c" * 64), False),
    "the same head": (receipt(count_of_intents=4), False),
    "less epsilon": (receipt(count_of_intents=4, head_hash="c" * 64, epsilon_spent=1.4), False),
}


@pytest.mark.parametrize(("later", "goes_on"), LATER.values(), ids=LATER.keys())
def test_a_later_receipt_of_the_same_ledger_has(later: SignedReceipt, goes_on: bool) -> None:
    assert later.goes_on_from(FIRST) is goes_on


def test_a_receipt_repeats_only_one_about_the_same_commit() -> None:
    assert FIRST.repeats(FIRST)
    assert receipt(epsilon_spent=2.0).repeats(FIRST)  # sent again after a release was added to the ledger
    assert not receipt(epsilon_spent=1.0).repeats(FIRST)
    assert not receipt(payload_sha256="c" * 64).repeats(FIRST)
    assert not FIRST.goes_on_from(FIRST)


# --- the file ---


@given(st.lists(_RECEIPTS, max_size=4, unique_by=lambda made: made.domain))
def test_a_file_of_receipts_is_read_back(tmp_path_factory: pytest.TempPathFactory, made: list[SignedReceipt]) -> None:
    path = tmp_path_factory.mktemp("receipts") / "receipts.json"
    path.write_text(receipts_text(made))
    assert read_receipts(path) == {each.domain: each for each in made}


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), lambda inner: st.lists(inner)).map(lambda v: json.dumps(v).encode()))
def test_whatever_a_file_holds_it_is_read_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("receipts") / "receipts.json"
    path.write_bytes(content)
    with pytest.raises(AuditError):
        read_receipts(path)


def test_a_file_is_refused_that_is_missing_deep_newer_or_names_a_domain_twice(tmp_path: Path) -> None:
    path = tmp_path / "receipts.json"
    with pytest.raises(AuditError, match="cannot be read"):
        read_receipts(path)
    path.write_text("[" * 100_000)
    with pytest.raises(AuditError, match="not JSON"):
        read_receipts(path)
    path.write_text(receipts_text([FIRST]).replace("receipts-1", "receipts-2"))
    with pytest.raises(AuditError, match="another format"):
        read_receipts(path)
    path.write_text(receipts_text([FIRST, receipt(count_of_intents=4)]))
    with pytest.raises(AuditError, match="two receipts of one domain"):
        read_receipts(path)


def test_reading_receipts_and_manifests_needs_neither_flower_nor_torch() -> None:
    code = "import sys, shared.privacy.receipts, shared.privacy.manifest; print([m for m in ('flwr', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
