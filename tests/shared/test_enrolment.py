"""The two cards: what they say survives the way, nothing else does, and no letter of them can be changed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from client.keys import PublicKeys
from shared.config import PrivacyConfig, RunConfig
from shared.enrolment import JoinCard, PartnerCard, PublicHalf, Ranges
from shared.errors import DataError
from shared.privacy.signing import SigningPair

from .cards import CA_PEM, NODE_KEY, authority, join_card, node_key, partner_card

OWNER = SigningPair(bytes(range(32)))
KEYS = st.binary(min_size=32, max_size=32).map(bytes.hex)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)
RANGES = st.builds(
    Ranges,
    max_sampling_rate=st.floats(1e-6, 1.0),
    max_clip_norm=st.floats(1e-6, 1e3),
    max_steps=st.integers(1, 10_000_000),
    min_noise_multiplier=st.none() | st.floats(1e-3, 1e4),
    max_grid_exponent=st.none() | st.integers(8, 40),
    methods=st.none() | st.sampled_from(["shared", "shared-private, shared", ""]),
    test_builds=st.none() | st.booleans(),
)
OLD_CARD: dict[str, Any] = {
    "format": "isthmus-partner-1",
    "signature": "8d1bc583663da9d7cf6bb511158a1adfe7f8ac9c15ca52d59c72468d2f040fa9"
    "cb9877eb592944c9d403718e63b40f194681a95337d076d2e3555b307066c207",
    "domain": "books",
    "verify_key": "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",
    "box_key": "0b" * 32,
    "node_key": "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBNihflW44vR7w2n9lhZpXOJz3OTjB4MKZfWkqaqJ"
    "Z8mHrup602VnehO/1lw/5aZpOb3FNULFITpRNF26giCrsjxxZZpNhQs7uv+NA1vQilnrMgmclqkEnk19Q1z2dXE7yA==",
    "ceiling_epsilon": 8.0,
    "delta": 1e-06,
    "ranges": {"max_sampling_rate": 0.5, "max_clip_norm": 10.0, "max_steps": 10000},
    "catalogue_hash": "c4" * 32,
}
"""As the version before the other ranges wrote and signed it."""
PARTNER_CARDS = st.builds(
    lambda seed, **values: partner_card(SigningPair(seed), **values),
    st.binary(min_size=32, max_size=32),
    domain=NAMES,
    box_key=KEYS,
    ceiling_epsilon=st.floats(1e-3, 1e6),
    delta=st.floats(1e-12, 1e-2),
    ranges=RANGES,
    catalogue_hash=st.none() | KEYS,
)
HALVES = st.lists(st.builds(PublicHalf, partner=NAMES, verify_key=KEYS, box_key=KEYS), max_size=5, unique_by=lambda one: one.partner)
JOIN_CARDS = st.builds(
    lambda seed, **values: join_card(SigningPair(seed), **values), st.binary(min_size=32, max_size=32), domain=NAMES, partners=HALVES
)


@given(PARTNER_CARDS)
def test_a_partners_card_says_the_same_after_the_way(card: PartnerCard) -> None:
    assert PartnerCard.from_json(card.to_json()) == card
    assert PartnerCard.from_json(card.to_json().encode()) == card


@given(JOIN_CARDS)
def test_a_coordinators_card_says_the_same_after_the_way(card: JoinCard) -> None:
    assert JoinCard.from_json(card.to_json()) == card


@given(PARTNER_CARDS | JOIN_CARDS, st.data())
def test_no_letter_of_a_card_can_be_changed(card: PartnerCard | JoinCard, data: st.DataObject) -> None:
    """Except where the text still says the same, as another blank does."""
    plain = bytearray(card.to_json().encode())
    at = data.draw(st.integers(0, len(plain) - 1))
    plain[at] ^= data.draw(st.integers(1, 255))
    try:
        read = type(card).from_json(bytes(plain))
    except DataError:
        return
    assert read == card


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_what_is_no_card_is_refused_and_nothing_else_happens(data: bytes | str) -> None:
    for kind in (PartnerCard, JoinCard):
        with pytest.raises(DataError):
            kind.from_json(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
)


@given(st.sampled_from(["partner", "join"]), st.data(), JSON)
def test_no_value_of_any_kind_passes_for_another(which: str, data: st.DataObject, value: Any) -> None:
    card = partner_card(OWNER) if which == "partner" else join_card(OWNER)
    values = json.loads(card.to_json())
    name = data.draw(st.sampled_from(sorted(values)))
    same = type(value) is type(values[name]) and value == values[name]
    values[name] = value
    if not same:
        with pytest.raises(DataError):
            type(card).from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("domain", ""),
        ("domain", "Books"),
        ("domain", "../books"),
        ("domain", "books\n"),
        ("domain", "b" * 65),
        ("box_key", "0B" * 32),
        ("node_key", NODE_KEY + " anna@laptop"),
        ("node_key", node_key(ec.SECP256R1())),
        ("node_key", "ecdsa-sha2-nistp384 " + "A" * 40),
        ("ceiling_epsilon", 8),
        ("ceiling_epsilon", 0.0),
        ("ceiling_epsilon", -1.0),
        ("delta", 0.5),
        ("ranges", None),
        ("catalogue_hash", ""),
    ],
)
def test_a_field_that_is_not_what_it_has_to_be_is_named_and_not_repeated(name: str, value: Any) -> None:
    """Signed by its owner: the form is judged, not the signature."""
    with pytest.raises(DataError, match=f"'{name}'") as caught:
        partner_card(OWNER, **{name: value})
    assert not value or str(value).strip() not in str(caught.value).replace(name, "")


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_ceiling_is_a_number(value: float) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        partner_card(OWNER, ceiling_epsilon=value)
    for spelled in ("Infinity", "NaN", "1e999"):
        with pytest.raises(DataError):
            PartnerCard.from_json(partner_card(OWNER).to_json().replace('"ceiling_epsilon": 8.0', f'"ceiling_epsilon": {spelled}'))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_sampling_rate", 0.0),
        ("max_sampling_rate", 1.5),
        ("max_clip_norm", 1),
        ("max_steps", 0),
        ("max_steps", True),
        ("methods", "anna's"),
        ("test_builds", 0),
    ],
)
def test_a_range_outside_of_all_sense_is_refused(name: str, value: Any) -> None:
    given_ = {"max_sampling_rate": 0.5, "max_clip_norm": 1.0, "max_steps": 10, name: value}
    with pytest.raises(DataError, match=name):
        partner_card(OWNER, ranges=Ranges(**given_))


@pytest.mark.parametrize("name", ["format", "domain", "verify_key", "node_key", "ranges", "catalogue_hash", "signature"])
def test_a_card_has_every_field_and_no_other(name: str) -> None:
    values = json.loads(partner_card(OWNER).to_json())
    with pytest.raises(DataError):
        PartnerCard.from_json(json.dumps({key: value for key, value in values.items() if key != name}))
    with pytest.raises(DataError):
        PartnerCard.from_json(json.dumps({**values, "also": 1}))
    with pytest.raises(DataError, match="names a field twice"):
        PartnerCard.from_json(partner_card(OWNER).to_json().replace("{", '{"domain": "films", ', 1))


def test_a_card_of_one_kind_never_passes_for_the_other() -> None:
    with pytest.raises(DataError, match="no card of the format isthmus-join-1"):
        JoinCard.from_json(partner_card(OWNER).to_json())
    assert partner_card(OWNER, domain="books").signature != join_card(OWNER).signature


def test_a_card_is_signed_by_the_key_that_it_names() -> None:
    values = json.loads(partner_card(OWNER).to_json())
    values["verify_key"] = SigningPair.generate().verify_key
    with pytest.raises(DataError, match="signature"):
        PartnerCard.from_json(json.dumps(values))


def test_only_the_certificate_of_an_authority_is_taken_and_only_one() -> None:
    for pem in (authority(ca=False), CA_PEM + authority(), CA_PEM + "\n", "", "-----BEGIN CERTIFICATE-----\n"):
        with pytest.raises(DataError, match="'ca_pem'"):
            join_card(OWNER, ca_pem=pem)


def test_the_receiver_is_left_out_of_the_partners_and_nobody_stands_twice() -> None:
    halves = [PublicHalf(partner=name, verify_key="aa" * 32, box_key="bb" * 32) for name in ("games", "books", "films")]
    assert [one.partner for one in join_card(OWNER, partners=halves).partners] == ["films", "games"]
    with pytest.raises(DataError, match="'partners'"):
        join_card(OWNER, partners=[halves[0], halves[0]])
    with pytest.raises(DataError, match="'partners'"):
        join_card(OWNER, domain=None, partners=halves)
    with pytest.raises(DataError, match="'partners'"):
        join_card(OWNER, partners=[PublicHalf(partner="../x", verify_key="aa" * 32, box_key="bb" * 32)])


def test_the_public_half_is_the_file_that_partners_hand_to_one_another() -> None:
    half = partner_card(OWNER).public
    theirs = PublicKeys.from_json(half.to_json())
    assert (theirs.partner, theirs.verify_key, theirs.box_key, theirs.fingerprint) == (
        half.partner,
        half.verify_key,
        half.box_key,
        half.fingerprint,
    )


def test_a_fingerprint_names_every_key_and_nothing_that_may_change() -> None:
    one = partner_card(OWNER)
    assert one.fingerprint == partner_card(OWNER, ceiling_epsilon=4.0).fingerprint
    others = [partner_card(SigningPair.generate()), partner_card(OWNER, box_key="cc" * 32), partner_card(OWNER, node_key=node_key())]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4
    joined = join_card(OWNER)
    assert joined.fingerprint == join_card(OWNER, domain="films").fingerprint
    assert len({joined.fingerprint, join_card(OWNER, server="b:1").fingerprint, join_card(OWNER, ca_pem=authority()).fingerprint}) == 3


def test_a_card_of_an_older_partner_is_read_and_says_nothing_about_the_other_ranges() -> None:
    card = PartnerCard.from_json(json.dumps(OLD_CARD))

    assert (card.ranges.max_steps, card.ranges.methods, card.ranges.min_noise_multiplier) == (10_000, None, None)
    assert card.fingerprint == "eacd 0715 3086 4bcd c995 9c3e d8e2 4556"
    assert PartnerCard.from_json(card.to_json()) == card
    seeded = RunConfig(privacy=PrivacyConfig(noise_multiplier=0.01, noise="seeded", delta=1e-6))
    assert list(card.outside(seeded)) == []
    assert len(list(partner_card(OWNER).outside(seeded))) == 2


@pytest.mark.parametrize("name", ["methods", "test_builds", "min_noise_multiplier", "min_history_decay"])
def test_a_range_cannot_be_taken_out_of_a_card_nor_put_into_an_old_one(name: str) -> None:
    values = json.loads(partner_card(OWNER).to_json())
    said = values["ranges"].pop(name)
    with pytest.raises(DataError, match="signature"):
        PartnerCard.from_json(json.dumps(values))
    old = {**OLD_CARD, "ranges": {**OLD_CARD["ranges"], name: said}}
    with pytest.raises(DataError, match="signature"):
        PartnerCard.from_json(json.dumps(old))


def test_a_card_says_which_runs_its_partner_would_refuse() -> None:
    card = partner_card(OWNER)
    assert list(card.outside(RunConfig())) == []
    wide = RunConfig(privacy=PrivacyConfig(delta=1e-5, sampling_rate=0.6, clip_norm=11.0, rounds=1001))
    assert len(list(card.outside(wide))) == 4


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    good, missing, pipe, large = (tmp_path / name for name in ("good", "missing", "pipe", "large"))
    good.write_text(partner_card(OWNER).to_json())
    os.mkfifo(pipe)
    large.write_bytes(b" " * (1 << 20) + b"{}")
    assert PartnerCard.read(good) == partner_card(OWNER)
    for path in (missing, pipe, large, tmp_path):
        with pytest.raises(DataError, match=str(path)):
            PartnerCard.read(path)
