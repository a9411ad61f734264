"""The page of the service and what travels are the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from client.serving_wire import CLASSES, FIELDS, KINDS, METHODS, STREAMED, describe, parse
from shared.errors import UsageError


def test_the_page_describes_the_messages_and_methods_that_travel(repository: Path) -> None:
    page = (repository / "client/proto/recommender.proto").read_text()
    described = describe()
    bare = re.sub(r"//[^\n]*", "", page)
    shown = {name: tuple(" ".join(line.split()) for line in body.split("\n") if line.strip()) for name, body in
             re.findall(r"message (\w+) \{(.*?)\}", bare, re.DOTALL)}  # fmt: skip
    kinds = re.search(r"enum Kind \{(.*?)\}", bare, re.DOTALL)

    assert f"package {described.package};" in bare
    assert f'syntax = "{described.syntax}";' in bare
    assert shown == FIELDS
    assert kinds is not None
    assert kinds[1].split() == " ".join(f"{name} = {number};" for number, name in enumerate(KINDS)).split()
    rpcs = re.findall(r"rpc (\w+)\((stream )?(\w+)\) returns \((\w+)\);", bare)
    assert {name: (request, reply) for name, _, request, reply in rpcs} == METHODS
    assert [name for name, stream, _, _ in rpcs if stream] == [STREAMED]


def test_a_field_that_was_left_out_is_told_from_one_that_is_zero() -> None:
    request = CLASSES["RecommendRequest"]

    assert not parse("RecommendRequest", request().SerializeToString()).HasField("k")
    zero = parse("RecommendRequest", request(k=0).SerializeToString())
    assert zero.HasField("k")
    assert zero.k == 0


def test_bytes_that_are_no_message_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no RecommendRequest"):
        parse("RecommendRequest", b"\xff\xff")
