"""Host and port: what a person may write, and what is a mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.addresses import is_address, is_host, join_address, split_address

NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z]([a-z0-9-]{0,9}[a-z0-9])?){0,2}", fullmatch=True)


@given(st.one_of(st.ip_addresses().map(str), NAMES), st.integers(1, 65_535))
def test_an_address_is_taken_apart_as_it_was_put_together(host: str, port: int) -> None:
    assert split_address(join_address(host, port)) == (host, port)


WRONG = [
    "",
    "host",
    ":1",
    "host:",
    "host:0",
    "host:65536",
    "host:01",
    "host:1\n",
    "http://a.example:1",
    "a;b:1",
    "a b:1",
    "-a:1",
    "a-:1",
    "a..b:1",
]
WRONG += ["::1:80", "[host]:1", "[::1]", "fe80::1%eth0:1", "[fe80::1%eth0]:1", "1.2.3:4", "256.1.1.1:1", "x" * 254 + ":1"]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_address_is_refused(text: str) -> None:
    assert not is_address(text)


def test_half_an_address_is_no_name() -> None:
    assert not is_host("10.0.0")
    assert is_host("10.0.0.1")
    assert is_host("10-0-0.example")
