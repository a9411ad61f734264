"""A contract is one configuration, one run, one bundle and one key. Whatever else is tried, it does not hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared import contract
from shared.config import RunConfig
from shared.errors import AuditError
from shared.privacy.signing import SigningPair, event_message, head_message, key_message
from tests.shared.privacy.bookshop import STRANGER

COORDINATOR = SigningPair(b"coordinator key for the tests..."[:32])
CONFIG = RunConfig()
SIGNED = {"config_toml": CONFIG.to_toml(), "run_id": "autumn-1", "bundle_digest": "b" * 64, "domains": "books,films"}
SIGNATURE = contract.sign(COORDINATOR, **SIGNED)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
contracts = st.fixed_dictionaries({"config_toml": texts, "run_id": texts, "bundle_digest": texts, "domains": texts})


def holds(key: str = COORDINATOR.verify_key, signature: str = SIGNATURE, **changes: str) -> bool:
    return contract.holds(key, signature, **{**SIGNED, **changes})


@given(contracts)
def test_what_was_signed_holds_and_is_signed_the_same_way_again(said: dict[str, str]) -> None:
    signature = contract.sign(COORDINATOR, **said)
    assert contract.holds(COORDINATOR.verify_key, signature, **said)
    assert contract.sign(SigningPair(b"coordinator key for the tests..."[:32]), **said) == signature  # also after a restart
    assert not contract.holds(STRANGER.verify_key, signature, **said)


@given(contracts, contracts)
def test_two_contracts_never_have_the_same_bytes(one: dict[str, str], other: dict[str, str]) -> None:
    assume(one != other)
    assert contract.message(**one) != contract.message(**other)
    assert not contract.holds(COORDINATOR.verify_key, contract.sign(COORDINATOR, **one), **other)


@given(st.lists(texts, min_size=4, max_size=4), st.integers(0, 3), st.integers(0, 3), st.integers(0, 40))
def test_letters_cannot_move_from_one_part_to_another(parts: list[str], source: int, target: int, count: int) -> None:
    """A run id at the end of a configuration, or half of it in the bundle's digest, would be another contract of the same letters."""
    moved = list(parts)
    moved[source], taken = moved[source][: len(moved[source]) - count], moved[source][len(moved[source]) - count :]
    moved[target] = taken + moved[target]
    assume(moved != parts)
    one, other = (dict(zip(SIGNED, texts, strict=True)) for texts in (parts, moved))
    assert contract.message(**one) != contract.message(**other)


@given(st.integers(0, len(CONFIG.to_toml()) - 1), st.characters(exclude_categories=["Cs"]))
def test_any_other_letter_of_the_configuration_breaks_it(at: int, letter: str) -> None:
    text = SIGNED["config_toml"]
    assume(text[at] != letter)
    assert not holds(config_toml=text[:at] + letter + text[at + 1 :])


@given(st.integers(0, 511))
def test_any_other_bit_of_the_signature_breaks_it(bit: int) -> None:
    wrong = bytearray.fromhex(SIGNATURE)
    wrong[bit // 8] ^= 1 << (bit % 8)
    assert not holds(signature=wrong.hex())


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "autumn-2"},
        {"run_id": ""},
        {"bundle_digest": "c" * 64},
        {"bundle_digest": ""},
        {"config_toml": ""},
        {"domains": "books"},
        {"domains": "books,films,games"},
        {"domains": ""},
    ],
)
def test_another_run_another_bundle_and_other_domains_are_other_contracts(change: dict[str, str]) -> None:
    assert holds()
    assert not holds(**change)


def test_what_only_changes_speed_is_signed_too() -> None:
    faster = dataclasses.replace(CONFIG, compute=dataclasses.replace(CONFIG.compute, torch_threads=2))
    assert faster.config_hash == CONFIG.config_hash
    assert not holds(config_toml=faster.to_toml())


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "00",
        SIGNATURE[:-2],
        SIGNATURE + "00",
        SIGNATURE.upper(),
        " " + SIGNATURE,
        SIGNATURE + "\n",
        "g" * 128,
        "0" * 128,
        "\u0660" * 128,
    ],
)
def test_what_is_no_signature_in_its_one_spelling_does_not_hold(signature: str) -> None:
    assert not holds(signature=signature)


def test_half_a_surrogate_pair_holds_nothing() -> None:
    assert not holds(config_toml="name = '\ud800'")
    assert not holds(run_id="\udfff")


@pytest.mark.parametrize("key", ["", "0" * 63, COORDINATOR.verify_key.upper(), "g" * 64])
def test_a_key_that_is_none_is_an_error_and_no_verdict(key: str) -> None:
    with pytest.raises(AuditError, match="32 bytes in hex"):
        holds(key)


def test_keys_of_small_order_vouch_for_nothing() -> None:
    """With the identity as key, the all-zero signature would hold for every message in a library that does not look."""
    for key in ("01" + "00" * 31, "00" * 32, "ec" + "ff" * 30 + "7f"):
        for signature in ("01" + "00" * 63, "00" * 64):
            assert not holds(key, signature)


def purposes() -> dict[str, Any]:
    return {
        "an event": event_message("a" * 64),
        "a change of key": key_message("books", "a" * 64, "b" * 64),
        "a head": head_message("books", 1, "a" * 64, "2026-01-01T00:00:00.000000Z"),
        "the bare text": SIGNED["config_toml"].encode(),
    }


@pytest.mark.parametrize("purpose", purposes())
def test_a_signature_for_another_purpose_signs_no_contract(purpose: str) -> None:
    assert not holds(signature=COORDINATOR.sign(purposes()[purpose]).hex())
    assert not contract.message(**SIGNED).startswith(purposes()[purpose][:10])
