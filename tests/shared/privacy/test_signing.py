"""A signature holds for one key, one message and one purpose."""

from __future__ import annotations

import pytest

from shared.errors import AuditError
from shared.privacy.signing import SigningPair, event_message, head_message, holds, is_verify_key, key_message
from tests.shared.privacy.bookshop import KEYS, STRANGER

DIGEST = "a" * 64

# RFC 8032, section 7.1: tests 1 to 3.
RFC = (
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
)


@pytest.mark.parametrize(("seed", "key", "message", "signature"), RFC)
def test_signatures_are_those_of_the_standard(seed: str, key: str, message: str, signature: str) -> None:
    pair = SigningPair(bytes.fromhex(seed))
    assert pair.verify_key == key
    assert pair.sign(bytes.fromhex(message)).hex() == signature
    assert holds(key, bytes.fromhex(message), bytes.fromhex(signature))


@pytest.mark.parametrize("bit", [0, 7, 255, 256, 511])
def test_a_signature_with_another_bit_does_not_hold(bit: int) -> None:
    message = event_message(DIGEST)
    wrong = bytearray(KEYS.sign(message))
    wrong[bit // 8] ^= 1 << (bit % 8)
    assert holds(KEYS.verify_key, message, KEYS.sign(message))
    assert not holds(KEYS.verify_key, message, bytes(wrong))


def test_a_signature_holds_for_no_other_key_and_no_other_message() -> None:
    signature = KEYS.sign(event_message(DIGEST))
    assert not holds(STRANGER.verify_key, event_message(DIGEST), signature)
    assert not holds(KEYS.verify_key, event_message("b" * 64), signature)


def test_what_is_signed_for_one_purpose_passes_for_no_other() -> None:
    messages = {
        event_message(DIGEST),
        key_message("books", KEYS.verify_key, STRANGER.verify_key),
        key_message("books", STRANGER.verify_key, KEYS.verify_key),
        key_message("films", KEYS.verify_key, STRANGER.verify_key),
        head_message("books", 7, DIGEST, "2031-01-01T00:00:00.000000Z"),
        head_message("films", 7, DIGEST, "2031-01-01T00:00:00.000000Z"),
        head_message("books", 8, DIGEST, "2031-01-01T00:00:00.000000Z"),
        head_message("books", 7, DIGEST, "2031-01-01T00:00:00.000001Z"),
    }
    assert len(messages) == 8
    for signed in messages:
        signature = KEYS.sign(signed)
        assert [other for other in messages if holds(KEYS.verify_key, other, signature)] == [signed]


@pytest.mark.parametrize("wrong", [b"", b"\0" * 64, b"x" * 63, b"x" * 65])
def test_what_is_no_signature_does_not_hold(wrong: bytes) -> None:
    assert not holds(KEYS.verify_key, event_message(DIGEST), wrong)


@pytest.mark.parametrize("point", ["01" + "00" * 31, "00" * 32, "ec" + "ff" * 30 + "7f"])
def test_a_key_under_which_anything_would_hold_confirms_nothing(point: str) -> None:
    """Points of small order: with them R = the point and S = 0 pass a careless check."""
    assert is_verify_key(point)
    assert not holds(point, event_message(DIGEST), bytes.fromhex(point) + b"\0" * 32)


@pytest.mark.parametrize("wrong", ["", "ab" * 31, "AB" * 32, "zz" * 32, "ab" * 33, "a" * 64 + "\n"])
def test_a_key_that_is_not_spelled_like_one_is_refused(wrong: str) -> None:
    assert not is_verify_key(wrong)
    with pytest.raises(AuditError, match="32 bytes in hex"):
        holds(wrong, b"", b"\0" * 64)


def test_a_key_in_memory_shows_nothing_of_itself() -> None:
    one, other = SigningPair.generate(), SigningPair.generate()
    assert one.verify_key != other.verify_key
    assert repr(one) == str(one) == "SigningPair(secret)"
    assert not hasattr(one, "__dict__")
