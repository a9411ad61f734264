"""Files of private passports: what a forger, a thief or a careless sender can do to what exact ones do not have."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.keys import Keys, seal
from client.passports import Statement, contents, export_passports, import_passports, statement_of
from client.privunit import PrivUnit
from client.public_projection import PrivateTerms, Projection
from client.training.noise import SeededNoise
from shared.errors import PassportError
from shared.interest_space import InterestSpace, Moments

D, K, EPSILON, ISSUED, EXPIRES, NOW = 12, 4, 2.0, 1_000, 2_000, 1_500
ARTS, OFFICE, MALLORY = (Keys(letter * 32, letter.upper() * 32) for letter in (b"a", b"o", b"m"))
LINKS = ["link-a", "link-b", "link-c"]
SPACE = InterestSpace.from_moments([Moments.of(np.random.default_rng(0).normal(size=(99, D)).astype(np.float32))], 8)
TERMS = PrivateTerms(epsilon=EPSILON, projection=Projection.of(SPACE, K))
BLOCK = 4 * (D + 1) * K
VECTORS = PrivUnit.of(K, EPSILON).release(np.random.default_rng(1).normal(size=(3, K)), SeededNoise("file"))


def exported(**changes: Any) -> bytes:
    defaults: dict[str, Any] = {
        "keys": ARTS,
        "source": "arts",
        "target": OFFICE.public("office"),
        "link_ids": LINKS,
        "vectors": VECTORS,
        "space_version": SPACE.version,
        "encoder_version": "initial",
        "issued": ISSUED,
        "expires": EXPIRES,
        "pad_to": 8,
        "private": TERMS,
    }
    return export_passports(**{**defaults, **changes})


def imported(data: bytes, **changes: Any) -> Any:
    defaults: dict[str, Any] = {
        "keys": OFFICE,
        "me": "office",
        "partners": {"arts": ARTS.public("arts")},
        "space_version": "another-space",
        "dimension": 8,
        "now": NOW,
    }
    return import_passports(data, **{**defaults, **changes})


def tampered(change: Callable[[bytearray], None]) -> bytes:
    """A file that Mallory, who somehow has its plain content, changed and sealed again to its target."""
    plain = bytearray(OFFICE.open_sealed(exported()))
    change(plain)
    return seal(bytes(plain), OFFICE.public("office").box_key)


def with_statement(**changes: Any) -> bytes:
    def change(plain: bytearray) -> None:
        (length,) = struct.unpack_from("<H", plain, 18)
        text = json.dumps({**json.loads(plain[20 : 20 + length]), **changes}).encode()
        plain[18:1024] = (struct.pack("<H", len(text)) + text).ljust(1006, b"\0")

    return tampered(change)


def test_what_was_exported_is_what_the_target_imports_whatever_space_it_works_in() -> None:
    found = imported(exported())
    assert found.link_ids == LINKS
    assert np.array_equal(found.vectors, VECTORS)
    assert found.private is not None
    assert found.private.digest == TERMS.digest
    assert (found.private.epsilon, found.private.dimension, found.space_version) == (EPSILON, K, SPACE.version)


@pytest.mark.parametrize(("n", "records"), [(0, 8), (1, 8), (8, 8), (9, 16)])
def test_the_size_of_a_file_says_only_its_public_bucket(n: int, records: int) -> None:
    drawn = PrivUnit.of(K, EPSILON).release(np.ones((n, K)), SeededNoise("size"))
    sealed = exported(link_ids=[f"link-{i}" for i in range(n)], vectors=drawn)
    assert len(sealed) == 48 + 1024 + BLOCK + records * (64 + 4 * K + 64)  # seal, head, coordinates, records
    assert len(imported(sealed).link_ids) == n


def test_what_a_file_says_of_itself_is_read_without_a_record() -> None:
    statement = statement_of(exported(), keys=OFFICE, me="office", source=ARTS.public("arts"), now=NOW)
    assert isinstance(statement, Statement)
    assert statement.private is not None
    assert (statement.private.epsilon, statement.dimension) == (EPSILON, K)
    assert contents(exported(), OFFICE)[1] == LINKS


@given(st.integers(0, len(OFFICE.open_sealed(exported())) - 1), st.integers(1, 255))
def test_no_byte_of_a_file_can_be_changed(at: int, by: int) -> None:
    def change(plain: bytearray) -> None:
        plain[at] ^= by

    with pytest.raises(PassportError):
        imported(tampered(change))


@pytest.mark.parametrize(
    "changes",
    [{"epsilon": 4.0}, {"expires": 9_000}, {"source": "office"}, {"target": "toys"}, {"projection": "0" * 64}, {"space_version": "x"}],
)
def test_nothing_of_the_statement_can_be_changed(changes: dict[str, Any]) -> None:
    with pytest.raises(PassportError):
        imported(with_statement(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": 4},
        {"epsilon": None},
        {"epsilon": -1.0},
        {"epsilon": 1e9},
        {"epsilon": float("nan")},
        {"projection": "../.."},
        {"text_dimension": 0},
        {"text_dimension": 10**9},
        {"dimension": 65},
        {"count": 9},
        {"extra": 1},
    ],
)
def test_statements_that_no_file_has_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PassportError):
        imported(with_statement(**changes))


def test_a_file_that_calls_itself_exact_is_refused() -> None:
    def change(plain: bytearray) -> None:
        plain[16:18] = struct.pack("<H", 1)

    with pytest.raises(PassportError, match="not a passport file of this version"):
        imported(tampered(change))


def test_other_coordinates_that_are_whole_are_refused_all_the_same() -> None:
    other = Projection.of(InterestSpace.from_moments([Moments.of(np.random.default_rng(5).normal(size=(99, D)).astype(np.float32))], 8), K)

    def change(plain: bytearray) -> None:
        plain[1024 : 1024 + BLOCK] = other.to_bytes()

    with pytest.raises(PassportError, match="not those that their source signed"):
        imported(tampered(change))


@pytest.mark.parametrize("factor", [0.5, 1.001, 2.0, 0.0])
def test_a_vector_of_another_length_leaves_nowhere_and_enters_nowhere(factor: float) -> None:
    with pytest.raises(PassportError, match="record 2: the vector is no release"):
        exported(vectors=VECTORS * np.array([[1.0], [factor], [1.0]], dtype=np.float32))
    sent_as_exact_terms = PrivateTerms(epsilon=EPSILON * 2, projection=TERMS.projection)
    with pytest.raises(PassportError, match="record 1: the vector is no release"):
        exported(private=sent_as_exact_terms)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"now": EXPIRES}, "expired"),
        ({"now": ISSUED - 4_000}, "in the future"),
        ({"me": "toys"}, "another domain"),
        ({"partners": {}}, "not among the partners"),
        ({"partners": {"arts": MALLORY.public("arts")}}, "record 1: the signature"),
        ({"keys": MALLORY}, "not sealed"),
    ],
)
def test_forged_expired_and_foreign_files_are_refused_as_exact_ones_are(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PassportError, match=says):
        imported(exported(), **changes)


def test_a_signature_of_an_exact_passport_is_none_of_a_private_one() -> None:
    exact = exported(private=None)
    theirs = np.frombuffer(OFFICE.open_sealed(exact)[1024:], dtype=np.uint8)

    def change(plain: bytearray) -> None:
        plain[1024 + BLOCK :] = theirs.tobytes()

    with pytest.raises(PassportError, match="record 1: the signature"):
        imported(tampered(change))
