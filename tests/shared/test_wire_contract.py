"""The greeting carries a signature and a digest in one spelling, or none."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from shared import wire
from shared.config import RunConfig

SIGNATURE, DIGEST = "1a" * 64, "b" * 64


def hello(**changes: Any) -> wire.Hello:
    said = {
        "run_id": "run-1",
        "config_toml": RunConfig().to_toml(),
        "contract_signature": SIGNATURE,
        "bundle_digest": DIGEST,
        "domains": "books,films",
    }
    return wire.Hello(**{**said, **changes})


def over_the_wire(content: RecordDict) -> RecordDict:
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


@pytest.mark.parametrize(
    "changes", [{}, {"contract_signature": ""}, {"bundle_digest": "", "domains": ""}, {"contract_signature": "", "bundle_digest": ""}]
)
def test_a_greeting_is_read_back_as_it_was_sent(changes: dict[str, str]) -> None:
    assert wire.read_instruction(wire.HELLO, over_the_wire(hello(**changes).pack())) == hello(**changes)


WRONG: dict[str, tuple[str, Any]] = {
    "a shorter signature": ("contract_signature", SIGNATURE[:-2]),
    "a longer signature": ("contract_signature", SIGNATURE + "00"),
    "a signature in capitals": ("contract_signature", SIGNATURE.upper()),
    "a signature with text behind it": ("contract_signature", SIGNATURE + "\n"),
    "a signature in bytes": ("contract_signature", bytes.fromhex(SIGNATURE)),
    "a signature that is a number": ("contract_signature", 0),
    "a signature that is a truth value": ("contract_signature", False),
    "a list of signatures": ("contract_signature", [SIGNATURE]),
    "a short digest": ("bundle_digest", DIGEST[:16]),
    "a digest that is a path": ("bundle_digest", "../bundle"),
    "a digest that is a number": ("bundle_digest", 0),
    "names of domains with a blank": ("domains", "books, films"),
    "names of domains that are a list": ("domains", ["books", "films"]),
    "names of domains without end": ("domains", "b" * 2**15),
    "a configuration without a letter": ("config_toml", ""),
    "a configuration of a megabyte": ("config_toml", "#" * 2**20),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_greeting_is_refused_that_holds(what: str) -> None:
    field, value = WRONG[what]
    content = hello().pack()
    content["fields"][field] = value
    with pytest.raises(wire.Malformed):
        wire.read_instruction(wire.HELLO, over_the_wire(content))
    with pytest.raises(wire.Malformed):
        hello(**{field: value}).pack()


@pytest.mark.parametrize("field", ["contract_signature", "bundle_digest", "domains"])
def test_a_greeting_that_leaves_one_out_is_refused(field: str) -> None:
    content = hello().pack()
    del content["fields"][field]
    with pytest.raises(wire.Malformed):
        wire.read_instruction(wire.HELLO, content)
