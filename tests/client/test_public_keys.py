"""Public keys with an address: the partner's own signature on it, and files of partners without one."""

from __future__ import annotations

import json

import pytest

from client.keys import Keys, PublicKeys
from shared.errors import PassportError

ARTS = Keys(b"a" * 32, b"A" * 32)


def test_public_keys_with_an_address_are_read_as_written_and_have_the_fingerprint_of_those_without() -> None:
    plain, reached = ARTS.public("arts"), ARTS.public("arts", address="arts.example:8444", certificate="PEM")

    assert PublicKeys.from_json(reached.to_json()) == reached
    assert set(json.loads(plain.to_json())) == {"partner", "verify_key", "box_key"}  # as earlier versions read it
    assert reached.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        {"address": "arts.example:8445"},
        {"address": "arts.example"},
        {"address": ""},
        {"certificate": "MEP"},
        {"certificate": ""},
        {"address_signature": ""},
        {"address_signature": "00" * 64},
        {"partner": "office"},
        {"verify_key": "00" * 32},
    ],
)
def test_an_address_that_its_partner_did_not_sign_is_refused(changed: dict[str, str]) -> None:
    said = json.loads(ARTS.public("arts", address="arts.example:8444", certificate="PEM").to_json())

    with pytest.raises(PassportError, match="the address of partner"):
        PublicKeys.from_json(json.dumps(said | changed))
