"""Passports: what a forger, a thief, a late comer or a broken disk can do to them."""

from __future__ import annotations

import json
import stat
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.keys import Keys, PublicKeys, seal
from client.passports import (
    ImportedPassports,
    Statement,
    array_version,
    export_passports,
    import_passports,
    read_passports,
    write_passports,
)
from shared.errors import PassportError, StorageError

D = 4
ISSUED, EXPIRES, NOW = 1_000, 2_000, 1_500
ARTS = Keys(b"a" * 32, b"A" * 32)
OFFICE = Keys(b"o" * 32, b"O" * 32)
MALLORY = Keys(b"m" * 32, b"M" * 32)
VECTORS = np.arange(3 * D, dtype=np.float32).reshape(3, D) / 10
LINKS = ["link-a", "link-b", "link-ü"]

STATEMENT = Statement(
    source="arts", target="office", space_version="space-1", encoder_version="encoder-1", dimension=D, issued=ISSUED, expires=EXPIRES
)


def exported(**changes: Any) -> bytes:
    defaults: dict[str, Any] = {
        "keys": ARTS,
        "source": "arts",
        "target": OFFICE.public("office"),
        "link_ids": LINKS,
        "vectors": VECTORS,
        "space_version": "space-1",
        "encoder_version": "encoder-1",
        "issued": ISSUED,
        "expires": EXPIRES,
        "pad_to": 8,
    }
    return export_passports(**{**defaults, **changes})


def imported(data: bytes, **changes: Any) -> ImportedPassports:
    defaults: dict[str, Any] = {
        "keys": OFFICE,
        "me": "office",
        "partners": {"arts": ARTS.public("arts")},
        "space_version": "space-1",
        "now": NOW,
    }
    return import_passports(data, **{**defaults, **changes})


def tampered(change: Any) -> bytes:
    """A file that Mallory, who somehow has its plain content, changed and sealed again to its target."""
    plain = bytearray(OFFICE.open_sealed(exported()))
    change(plain)
    return seal(bytes(plain), OFFICE.public("office").box_key)


def with_statement(**changes: Any) -> bytes:
    def change(plain: bytearray) -> None:
        (length,) = struct.unpack_from("<H", plain, 18)
        values = {**json.loads(plain[20 : 20 + length]), **changes}
        text = json.dumps(values).encode()
        plain[18:1024] = (struct.pack("<H", len(text)) + text).ljust(1006, b"\0")

    return tampered(change)


def test_what_was_exported_is_what_the_target_imports() -> None:
    passports = imported(exported())
    assert passports.link_ids == LINKS
    assert passports.vectors.dtype == np.float32
    assert np.array_equal(passports.vectors, VECTORS)
    assert (passports.source, passports.encoder_version, passports.issued, passports.expires) == ("arts", "encoder-1", ISSUED, EXPIRES)


@pytest.mark.parametrize(("n", "records"), [(0, 8), (1, 8), (8, 8), (9, 16), (16, 16), (17, 32)])
def test_the_size_of_a_file_says_only_its_public_bucket(n: int, records: int) -> None:
    links = [f"{'long-' * (i % 10)}{i}" for i in range(n)]
    sealed = exported(link_ids=links, vectors=np.ones((n, D), dtype=np.float32))
    assert len(sealed) == 48 + 1024 + records * (64 + 4 * D + 64)  # seal + head + records of link id, vector, signature
    assert imported(sealed).link_ids == links


def test_a_file_without_passports_is_as_large_as_one_with_some() -> None:
    assert len(exported(link_ids=[], vectors=np.zeros((0, D), np.float32))) == len(exported())


def test_the_sealed_file_shows_no_link_no_partner_and_no_vector() -> None:
    sealed = exported()
    for needle in (*(link.encode() for link in LINKS), b"arts", b"office", b"space-1", b"isthmus", VECTORS[1].tobytes()):
        assert needle not in sealed
    assert exported() != sealed  # nor is one export comparable with the next


def test_passports_sealed_to_another_partner_cannot_be_opened() -> None:
    with pytest.raises(PassportError, match="not sealed to this partner's key"):
        imported(exported(), keys=MALLORY)


def test_a_passport_forged_by_someone_else_is_refused() -> None:
    with pytest.raises(PassportError, match="record 1: the signature"):
        imported(exported(keys=MALLORY))


def test_a_passport_that_its_target_hands_on_is_refused_by_the_third_partner() -> None:
    handed_on = seal(OFFICE.open_sealed(exported()), MALLORY.public("toys").box_key)
    with pytest.raises(PassportError, match="made for another domain"):
        imported(handed_on, keys=MALLORY, me="toys")


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "toys"},
        {"source": "books"},
        {"space_version": "space-2"},
        {"encoder_version": "encoder-2"},
        {"issued": ISSUED + 1},
        {"expires": EXPIRES + 1},
    ],
)
def test_no_word_of_the_statement_can_be_changed(changes: dict[str, Any]) -> None:
    partners = {"arts": ARTS.public("arts"), "books": ARTS.public("books")}
    with pytest.raises(PassportError, match="the signature is not its source's"):
        imported(
            with_statement(**changes),
            me=changes.get("target", "office"),
            space_version=changes.get("space_version", "space-1"),
            partners=partners,
        )


@pytest.mark.parametrize("offset", [0, 64, 64 + 4 * D], ids=["link id", "vector", "signature"])
def test_no_byte_of_a_record_can_be_changed(offset: int) -> None:
    def flip(plain: bytearray) -> None:
        plain[1024 + (128 + 4 * D) + offset] ^= 1  # in the second record

    with pytest.raises(PassportError, match="record 2: the signature"):
        imported(tampered(flip))


def test_a_signature_of_one_link_does_not_serve_another() -> None:
    size = 128 + 4 * D

    def swap(plain: bytearray) -> None:
        first, second = plain[1024 : 1024 + 64], plain[1024 + size : 1024 + size + 64]
        plain[1024 : 1024 + 64], plain[1024 + size : 1024 + size + 64] = second, first

    with pytest.raises(PassportError, match="record 1: the signature"):
        imported(tampered(swap))


def test_something_hidden_in_the_padding_is_refused() -> None:
    with pytest.raises(PassportError, match="should be empty"):
        imported(tampered(lambda plain: plain.__setitem__(len(plain) - 1, 7)))


@pytest.mark.parametrize(("now", "refused"), [(EXPIRES - 1, False), (EXPIRES, True), (EXPIRES + 1, True)])
def test_a_passport_is_refused_from_the_second_it_expires(now: int, refused: bool) -> None:
    if refused:
        with pytest.raises(PassportError, match="expired"):
            imported(exported(), now=now)
    else:
        assert imported(exported(), now=now).link_ids == LINKS


def test_a_passport_from_the_future_is_refused_because_nothing_could_replace_it() -> None:
    with pytest.raises(PassportError, match="issued in the future"):
        imported(exported(issued=NOW + 3601, expires=NOW + 9000))


def test_passports_of_another_space_are_refused() -> None:
    with pytest.raises(PassportError, match="another version of the interest space"):
        imported(exported(), space_version="space-2")


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(PassportError, match="another length"):
        imported(exported(), dimension=D + 1)


def test_a_source_that_is_no_partner_is_refused() -> None:
    with pytest.raises(PassportError, match="not among the partners"):
        imported(exported(), partners={"books": MALLORY.public("books")})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_neither_signed_nor_taken_in(bad: float) -> None:
    vectors = VECTORS.copy()
    vectors[1, 2] = bad
    with pytest.raises(PassportError, match="record 2: the vector is not finite"):
        exported(vectors=vectors)

    def sign_it_nevertheless(plain: bytearray) -> None:
        at = 1024 + 128 + 4 * D  # the second record
        plain[at + 64 : at + 64 + 4 * D] = vectors[1].tobytes()
        plain[at + 64 + 4 * D : at + 128 + 4 * D] = ARTS.sign(STATEMENT.canonical() + bytes(plain[at : at + 64 + 4 * D]))

    with pytest.raises(PassportError, match="record 2: the vector is not finite"):
        imported(tampered(sign_it_nevertheless))


def test_two_passports_for_one_link_are_refused_by_row_and_not_by_value() -> None:
    with pytest.raises(PassportError, match="record 3: the link id is the one of record 1") as caught:
        exported(link_ids=["secret-token", "b", "secret-token"])
    assert "secret-token" not in str(caught.value)


@pytest.mark.parametrize("bad", ["", "x" * 65, "a\0b", "\ud800"])
def test_a_link_id_that_does_not_fit_is_refused_by_row(bad: str) -> None:
    with pytest.raises(PassportError, match="record 2: a link id is"):
        exported(link_ids=["a", bad, "c"])


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors": VECTORS[:2]},
        {"vectors": VECTORS[0]},
        {"pad_to": 0},
        {"pad_to": 12},
        {"expires": ISSUED},
        {"issued": -1},
        {"source": "office"},
        {"source": "../office"},
        {"space_version": ""},
        {"encoder_version": "e" * 129},
    ],
)
def test_an_export_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PassportError):
        exported(**changes)


@given(st.binary(max_size=2000))
def test_garbage_is_a_passport_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(PassportError):
        imported(data)


@given(st.binary(max_size=3000))
def test_garbage_in_a_sound_seal_is_a_passport_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(PassportError):
        imported(seal(data, OFFICE.public("office").box_key))


@given(st.binary(max_size=1004), st.binary(max_size=200))
def test_a_garbage_statement_under_a_sound_head_is_a_passport_error(statement: bytes, rest: bytes) -> None:
    head = b"isthmus-passport" + struct.pack("<HH", 1, len(statement)) + statement.ljust(1004, b"\0")
    with pytest.raises(PassportError):
        imported(seal(head + rest, OFFICE.public("office").box_key))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(["source", "target", "space_version", "encoder_version", "dimension", "issued", "expires", "count", "more"]), _json)
def test_a_statement_with_one_strange_value_is_a_passport_error_or_still_true(field: str, value: Any) -> None:
    try:
        data = with_statement(**{field: value})
    except struct.error:
        return
    try:
        passports = imported(data)
    except PassportError:
        return
    assert field == "count"  # it only says how many of the signed records to read
    assert passports.link_ids == LINKS[: len(passports.link_ids)]


@given(st.data())
def test_a_cut_or_bent_file_is_a_passport_error(data: st.DataObject) -> None:
    sealed = exported()
    cut = data.draw(st.integers(0, len(sealed) - 1))
    bent = bytearray(sealed)
    bent[cut] ^= data.draw(st.integers(1, 255))
    for broken in (sealed[:cut], bytes(bent)):
        with pytest.raises(PassportError):
            imported(broken)


@given(st.integers(0, 10_000))
def test_a_file_cut_before_it_was_sealed_again_is_a_passport_error(cut: int) -> None:
    plain = OFFICE.open_sealed(exported())
    with pytest.raises(PassportError):
        imported(seal(plain[: cut % len(plain)], OFFICE.public("office").box_key))


def test_ten_thousand_passports_take_about_a_second() -> None:
    n, d = 10_000, 64
    vectors = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    began = time.perf_counter()
    passports = imported(exported(link_ids=[f"link-{i}" for i in range(n)], vectors=vectors))
    assert time.perf_counter() - began < 10.0  # 0.7 s where nothing else runs; a quadratic step would take minutes
    assert np.array_equal(passports.vectors, vectors)


def test_a_passport_file_is_replaced_whole_and_belongs_to_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "out" / "office.passports"
    write_passports(path, b"old")
    write_passports(path, b"new")
    assert read_passports(path) == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["office.passports"]


def test_a_passport_file_that_cannot_be_written_or_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write 'office\.passports'"):
        write_passports(tmp_path / "file" / "office.passports", b"new")
    with pytest.raises(PassportError, match="cannot be read"):
        read_passports(tmp_path / "nothing")


def test_keys_are_made_once_and_belong_to_their_owner(tmp_path: Path) -> None:
    first = Keys.load_or_create(tmp_path / "keys").public("arts")
    assert Keys.load_or_create(tmp_path / "keys").public("arts") == first
    assert Keys.load_or_create(tmp_path / "other").public("arts") != first
    assert PublicKeys.from_json(first.to_json()) == first
    (file,) = (tmp_path / "keys").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    Keys.load_or_create(tmp_path)
    (tmp_path / "partner.keys").chmod(0o644)
    with pytest.raises(PassportError, match="can be read by others"):
        Keys.load_or_create(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"signing": "zz", "box": "00"}', '{"signing": "00", "box": "00"}', "[1]", "\xff"])
def test_damaged_keys_are_refused_and_not_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "partner.keys"
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    with pytest.raises(PassportError, match="damaged"):
        Keys.load_or_create(tmp_path)
    assert path.read_text(encoding="latin-1") == text


def test_private_keys_do_not_print_themselves() -> None:
    assert repr(ARTS) == "Keys(secret)"


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 65, "ünder", "a b", "-a"])
def test_a_partner_whose_name_could_be_a_path_is_refused(name: str) -> None:
    with pytest.raises(PassportError, match="a partner's name"):
        ARTS.public(name)


@given(st.text(max_size=200))
def test_public_keys_that_are_not_public_keys_are_refused(text: str) -> None:
    with pytest.raises(PassportError):
        PublicKeys.from_json(text)


def test_an_encoder_with_other_parameters_has_another_version() -> None:
    one = {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    assert array_version(one) == array_version(dict(reversed(one.items())))
    assert array_version(one) != array_version({**one, "a": np.ones((3, 2), np.float32)})
    assert array_version(one) != array_version({**one, "b": np.full(2, 1e-30, np.float32)})
