"""Every message of whole runs, in both directions, is searched for what was planted in the data; and its size tells nothing."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.common.serde import recorddict_to_proto

from client.settings import ClientSettings
from server.strategy import TooFewClients
from shared import wire
from shared.privacy.ledger import read_events
from tests.journeys.marked_world import ITEM, USER, Wire, all_secrets, leaks, marked_world, secrets_of
from tests.journeys.tiny_world import DOMAINS

pytestmark = pytest.mark.journey

UNAVAILABLE = recorddict_to_proto(wire.Unavailable().pack()).SerializeToString(deterministic=True)


# --- the search itself ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hide",
    [
        lambda s: s,
        lambda s: s.hex().encode(),
        lambda s: base64.b64encode(b"x" + s + b"yz"),
        lambda s: base64.b64encode(b"xy" + s),
        lambda s: base64.urlsafe_b64encode(b"xyz" + s + b"z"),
        lambda s: s.decode().encode("utf-16-le"),
        lambda s: s[::-1],
        lambda s: hashlib.sha256(s).hexdigest().encode(),
    ],
)
def test_a_hidden_marker_is_found(hide: Callable[[bytes], bytes]) -> None:
    assert leaks([("up", 0, b"\x08\x01" + hide(USER.encode()) + b"\x12")], {"user": USER, "item": ITEM}) == {"user"}


# --- whole runs -----------------------------------------------------------------------------------------------------------------------


def test_no_row_leaves_in_a_whole_run(tmp_path: Path) -> None:
    federation, seen = marked_world(tmp_path, "run"), Wire()
    outcome = federation.federate(on_message=seen)
    assert outcome.domains == DOMAINS
    assert outcome.not_delivered == ()
    assert len(seen.messages) == 3 * 2 * 7  # hello, moments, centroids, descriptor, two rounds, deliver; there and back
    secrets = all_secrets(federation)
    assert len(secrets) == 3 * 18
    assert leaks(seen.messages, secrets) == set()
    print(f"{len(seen.messages)} messages, {sum(len(m) for *_, m in seen.messages):,} bytes, {len(secrets)} secrets: none found")


def _truncate(settings: ClientSettings) -> None:
    path = settings.path(settings.data.interactions)
    path.write_text(path.read_text()[:200] + f'\n"{USER}-unfinished,{ITEM}')


def _remove(settings: ClientSettings) -> None:
    settings.path(settings.data.interactions).unlink()


def _unknown_item(settings: ClientSettings) -> None:
    with settings.path(settings.data.interactions).open("a") as file:
        file.write(f"{USER}-bad,{ITEM}-unheard-of,1600000000\n")


def _wrong_time(settings: ClientSettings) -> None:
    with settings.path(settings.data.interactions).open("a") as file:
        file.write(f"{USER}-bad,{ITEM}-books-001,{USER}-is-no-time\n")


def _not_utf8(settings: ClientSettings) -> None:
    with settings.path(settings.data.interactions).open("ab") as file:
        file.write(USER.encode() + b"\xff\xfe," + ITEM.encode() + b",1600000000\n")


def _misnamed(settings: ClientSettings) -> None:
    path = settings.path(settings.data.interactions)
    path.unlink()
    path.mkdir()


PLANTED = {
    "a truncated file": _truncate,
    "a missing file": _remove,
    "an unknown item": _unknown_item,
    "a wrong time": _wrong_time,
    "bytes that are no text": _not_utf8,
    "a folder in place of a file": _misnamed,
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
def test_a_client_that_fails_answers_the_fixed_reply_and_nothing_of_its_row(
    tmp_path: Path, plant: Callable[[ClientSettings], None], caplog: pytest.LogCaptureFixture
) -> None:
    federation, seen = marked_world(tmp_path, "run", privacy__rounds=1), Wire()
    plant(federation.settings[0])
    with caplog.at_level(logging.ERROR):
        outcome = federation.federate(on_message=seen)
    assert outcome.domains == DOMAINS[1:]  # the others go on
    failed = seen.up(0, wire.MOMENTS)
    assert set(failed) == {UNAVAILABLE}
    secrets = {f"{one.domain}: {name}": s for one in federation.settings[1:] for name, s in secrets_of(one).items()}
    assert leaks(seen.messages, secrets) == set()


def test_a_failure_after_the_intent_answers_the_fixed_reply_too(tmp_path: Path) -> None:
    """The new state cannot be written: the intent is spent, nobody learns why there is no update."""
    federation, seen = marked_world(tmp_path, "run"), Wire()
    broken = federation.settings[0]

    def break_one(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("train", 1):
            lock = broken.at_home("state") / ".lock"
            lock.unlink()
            lock.mkdir()

    outcome = federation.federate(on_message=seen, progress=break_one)
    first, *others = seen.up(0, wire.TRAIN)
    assert first != UNAVAILABLE
    assert others == [UNAVAILABLE]
    assert outcome.round == 2
    assert [event.payload["round"] for event in read_events(broken.ledger_path) if event.kind == "intent"] == [1, 2]
    assert [event.payload["round"] for event in read_events(broken.ledger_path) if event.kind == "commit"] == [1]
    assert leaks(seen.messages, all_secrets(federation)) == set()


def test_a_file_that_breaks_between_rounds_costs_no_intent(tmp_path: Path) -> None:
    federation, seen = marked_world(tmp_path, "run"), Wire()

    def break_one(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("train", 1):
            _wrong_time(federation.settings[0])

    outcome = federation.federate(on_message=seen, progress=break_one)
    assert seen.up(0, wire.TRAIN)[1:] == [UNAVAILABLE]
    assert seen.up(0, wire.DELIVER) == [UNAVAILABLE, UNAVAILABLE]
    assert outcome.not_delivered == (("books", "unavailable"),)
    assert [event.kind for event in read_events(federation.settings[0].ledger_path)] == ["genesis", "schedule", "intent", "commit"]
    assert leaks(seen.messages, all_secrets(federation)) == set()


def test_refusals_tell_a_code_and_nothing_else(tmp_path: Path) -> None:
    federation, seen = marked_world(tmp_path, "run", ceiling__epsilon=0.5), Wire()
    with pytest.raises(TooFewClients):
        federation.federate(on_message=seen)
    refused = recorddict_to_proto(wire.Refused("ceiling").pack()).SerializeToString(deterministic=True)
    assert [seen.up(client, wire.HELLO) for client in range(3)] == [[refused]] * 3
    assert leaks(seen.messages, all_secrets(federation)) == set()


# --- sizes ----------------------------------------------------------------------------------------------------------------------------


def test_no_message_is_longer_for_more_users_or_more_links(tmp_path: Path) -> None:
    sizes, passports = {}, {}
    for name, alone, linked in (("small", 20, 8), ("twice", 40, 16), ("tenfold", 200, 80), ("unlinked", 20, 0)):
        federation, seen = marked_world(tmp_path, name, alone=alone, linked=linked), Wire()
        federation.federate(on_message=seen)
        sizes[name] = seen.sizes()
        passports[name] = {path.name: path.stat().st_size for path in sorted((federation.folder.clients / ".post").iterdir())}
    for name in ("twice", "tenfold", "unlinked"):
        assert sizes[name] == sizes["small"]
        assert passports[name] == passports["small"]  # files between partners lie in public buckets
    assert len(set(passports["small"].values())) == 1
    assert len(passports["small"]) == 6
    print("bytes up:", {kind: sizes["small"]["up", 0, kind] for kind in wire.KINDS}, "passport file:", set(passports["small"].values()))


def test_passports_are_in_no_message(tmp_path: Path) -> None:
    federation, seen = marked_world(tmp_path, "run"), Wire()
    federation.federate(on_message=seen)
    files = sorted((federation.folder.clients / ".post").iterdir())
    assert len(files) == 6
    for path in files:
        data = path.read_bytes()
        assert not any(data[at : at + 32] in message for at in range(0, len(data) - 32, 4096) for *_, message in seen.messages)
