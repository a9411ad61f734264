"""Files of passports that are handed to the service: good ones are personal answers a moment later, all others change nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.key_rotation import own_keys
from client.passport_exchange import export
from client.passports import export_passports
from client.preparation import prepare
from client.register import Register
from client.serving_wire import CLASSES
from client.settings import ClientSettings
from tests.client.partner_world import CONFIG, World, link_id
from tests.client.recommender.shops import NEWCOMERS, SUBJECTS, likes, subject_of
from tests.client.serving.counter import Counter, served

NEW = "somebody-new"
"""In no file of films; a reader of books by another name."""

FRESH = "a-token-of-their-own"
DAY = 86_400


def sealed(
    source: ClientSettings,
    target: ClientSettings,
    space_version: str,
    *,
    signer: ClientSettings | None = None,
    issued: int | None = None,
    days: int = 30,
    links: tuple[str, ...] = (FRESH,),
    vectors: np.ndarray | None = None,
) -> bytes:
    """A file of passports with fields of one's choice, signed and sealed by the code that makes real ones."""
    issued = int(time.time()) if issued is None else issued
    return export_passports(
        keys=own_keys(signer or source),
        source=source.domain,
        target=own_keys(target).public(target.domain),
        link_ids=list(links),
        vectors=interest_of(source, "p002", len(links)) if vectors is None else vectors,
        space_version=space_version,
        encoder_version="initial",
        issued=issued,
        expires=issued + days * DAY,
        pad_to=8,
    )


def interest_of(shop: ClientSettings, person: str, copies: int = 1) -> np.ndarray:
    """Where the source sees a reader of its: the mean of what they had."""
    prepared = prepare(shop, CONFIG)
    (space,) = {path.stem for path in shop.at_home("prepared/spaces").glob("*.npz")}
    items = [at for at, item in enumerate(prepared.item_ids) if subject_of(item) == SUBJECTS[likes(person)]]
    return np.repeat(prepared.coordinates(space)[items].mean(axis=0, keepdims=True), copies, axis=0).astype(np.float32)


def kept(settings: ClientSettings) -> list[str]:
    """Link ids of all passports that came in, and what lies in the inbox."""
    with Register(settings.at_home("register.sqlite")) as register:
        (version,) = {one.space_version for one in register.overview() if one.direction == "in"}
        found = register.imported("books", space_version=version, now=int(time.time()))[0]
    inbox = settings.path("inbox")
    return [*found, *(sorted(path.name for path in inbox.iterdir()) if inbox.is_dir() else [])]


def test_a_passport_makes_the_very_next_answer_of_a_user_whom_nobody_knew_personal(shops: World, films: Counter) -> None:
    assert films.ask("Recommend", user=NEW)[0] == "NOT_FOUND"

    status, reply = films.hand_over(sealed(shops["books"], shops["films"], shops.space_version), user=NEW, link_id=FRESH)
    assert (status, reply.source, reply.passports) == ("OK", "books", 1)
    assert reply.expires > time.time() + 29 * DAY

    status, answer = films.ask("Recommend", user=NEW, k=4)
    assert (status, answer.source) == ("OK", "passport from books")
    assert [subject_of(one.item) for one in answer.items if one.item != "f00"] == [SUBJECTS[likes("p002")]] * 3
    explained = films.ask("Explain", user=NEW, item=answer.items[1].item)[1]
    assert explained.prototypes
    assert list(explained.like) == []


@pytest.mark.journey
def test_between_two_running_partners_a_cold_user_takes_their_interest_along_both_ways(shops: World) -> None:
    """What was observed at books a moment ago is not in the passport; what books knew when it was prepared is."""
    with served(shops["books"]) as books, served(shops["films"]) as films:
        for here, there, counter in (("books", "films", films), ("films", "books", books)):
            person = f"{here}-005"  # a customer of one shop only, in nobody's links
            stranger = f"new-from-{here}"
            assert counter.ask("Recommend", user=stranger)[0] == "NOT_FOUND"
            popular = counter.items(user=stranger, even_unknown=True, k=5)

            data = sealed(shops[here], shops[there], shops.space_version, vectors=interest_of(shops[here], person))
            assert counter.hand_over(data, user=stranger, link_id=FRESH)[0] == "OK"

            status, answer = counter.ask("Recommend", user=stranger, k=5)
            items = [one.item for one in answer.items]
            assert (status, answer.source) == ("OK", f"passport from {here}")
            assert items != popular
            assert [subject_of(item) for item in items if not item.endswith("00")][:3] == [SUBJECTS[likes(person)]] * 3
            counter.ask("Observe", user=stranger, item=items[1], kind=1)
            assert items[1] not in counter.items(user=stranger, k=5)


def test_a_real_export_for_linked_users_is_taken_and_taken_again_only_where_something_is_new(shops: World, films: Counter) -> None:
    books = shops["books"]
    time.sleep(1.1)  # a passport is as old as its second
    made = export(books, CONFIG, prepare(books, CONFIG), "films", shops.space_version)
    data = made.path.read_bytes()

    status, reply = films.hand_over(data)
    assert (status, reply.passports) == ("OK", made.passports)

    before = kept(shops["films"])
    status, text = films.hand_over(data)  # replayed
    assert (status, "nothing in the file is new" in text) == ("ALREADY_EXISTS", True)
    assert kept(shops["films"]) == before
    assert films.ask("Recommend", user=NEWCOMERS[0], k=2)[1].source == "passport from books"


def test_forged_expired_foreign_and_damaged_files_change_nothing(shops: World, tmp_path: Path) -> None:
    books, films = shops["books"], shops["films"]
    version, now = shops.space_version, int(time.time())
    good = sealed(books, films, version)
    elsewhere = dataclasses.replace(books, domain="music")
    attempts = {
        "signature": sealed(books, films, version, signer=films),  # forged
        "have expired": sealed(books, films, version, issued=now - 40 * DAY),
        "in the future": sealed(books, films, version, issued=now + 2 * DAY),
        "another domain": sealed(books, dataclasses.replace(films, domain="games"), version),
        "not among the partners": sealed(elsewhere, films, version),
        "another version of the interest space": sealed(books, films, "0123456789abcdef"),
        "another length": sealed(books, films, version, vectors=np.ones((1, 5), dtype=np.float32)),
        "": bytes([good[0] ^ 1]) + good[1:],
        "'chunk' is empty": b"",
    }
    with served(films) as counter:
        before = kept(films)
        for said, data in attempts.items():
            status, text = counter.hand_over(data, user=NEW, link_id=FRESH)
            assert (status, said in text) == ("INVALID_ARGUMENT", True), (said, status, text)
            assert FRESH not in text
        for data in (good[:-1], good + b"\0", b"x" * 500_000, good[: len(good) // 2]):
            assert counter.hand_over(data, user=NEW, link_id=FRESH)[0] == "INVALID_ARGUMENT"
        assert kept(films) == before
        assert counter.ask("Recommend", user=NEW)[0] == "NOT_FOUND"
        assert counter.hand_over(good, user=NEW, link_id=FRESH)[0] == "OK"  # none the worse


def test_a_link_that_is_somebody_elses_or_in_no_file_is_refused_before_anything_is_kept(shops: World, films: Counter) -> None:
    books, target = shops["books"], shops["films"]
    data = sealed(books, target, shops.space_version)
    before = kept(target)
    assert films.hand_over(data, user=NEW, link_id="another-token")[0] == "INVALID_ARGUMENT"
    assert films.hand_over(data, user=NEW)[0] == "INVALID_ARGUMENT"
    assert films.hand_over(data, link_id=FRESH)[0] == "INVALID_ARGUMENT"
    assert films.hand_over(data, user=" ", link_id=FRESH)[0] == "INVALID_ARGUMENT"
    assert kept(target) == before

    assert films.hand_over(data, user=NEW, link_id=FRESH)[0] == "OK"
    later = sealed(books, target, shops.space_version, issued=int(time.time()) + 5)
    status, text = films.hand_over(later, user="an-impostor", link_id=FRESH)
    assert (status, "another user's" in text) == ("INVALID_ARGUMENT", True)
    assert films.ask("Recommend", user="an-impostor")[0] == "NOT_FOUND"

    linked = sealed(books, target, shops.space_version, links=(link_id("p004"),), issued=int(time.time()) + 10)
    status, text = films.hand_over(linked, user="an-impostor", link_id=link_id("p004"))  # the partner's file says whose it is
    assert (status, "another user's" in text) == ("INVALID_ARGUMENT", True)
    assert films.hand_over(linked, user="p004", link_id=link_id("p004"))[0] == "OK"


def test_a_file_larger_than_any_is_given_up_on_the_way(films: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.serving.MOST_FILE_BYTES", 100_000)
    sent = []

    def endless() -> Iterator[object]:
        part = CLASSES["AcceptPassportRequest"](chunk=b"x" * 20_000)
        while len(sent) < 10_000:
            sent.append(1)
            yield part

    status, text = films.stream(endless())
    assert (status, "larger than any" in text) == ("INVALID_ARGUMENT", True)
    assert len(sent) < 10_000


def test_whom_a_passport_belongs_to_is_said_once_at_the_beginning(films: Counter) -> None:
    part = CLASSES["AcceptPassportRequest"]
    status, text = films.stream(iter([part(chunk=b"x"), part(chunk=b"y", user=NEW)]))
    assert (status, "first part only" in text) == ("INVALID_ARGUMENT", True)


def test_a_link_that_the_partners_file_knows_is_found_without_naming_anybody(shops: World, films: Counter) -> None:
    person = NEWCOMERS[1]
    vectors = interest_of(shops["books"], "p005")  # tastes change
    data = sealed(
        shops["books"], shops["films"], shops.space_version, links=(link_id(person),), vectors=vectors, issued=int(time.time()) + 60
    )

    assert films.hand_over(data)[0] == "OK"

    answer = films.ask("Recommend", user=person, k=4)[1]
    assert [subject_of(one.item) for one in answer.items if one.item != "f00"] == [SUBJECTS[likes("p005")]] * 3


def test_private_passports_are_taken_by_the_same_call(shops: World, films: Counter) -> None:
    toml = Path(shops.toml("books"))
    toml.write_text(toml.read_text().replace('mode = "exact"', 'mode = "private"'))
    books = shops["books"]
    assert books.passports.mode == "private"
    time.sleep(1.1)  # newer than the exact ones that came before
    made = export(books, CONFIG, prepare(books, CONFIG), "films", shops.space_version)

    status, reply = films.hand_over(made.path.read_bytes())

    assert (status, reply.passports) == ("OK", made.passports)
    assert films.ask("Recommend", user=NEWCOMERS[0], k=2)[1].source == "passport from books"
    assert films.hand_over(made.path.read_bytes())[0] == "ALREADY_EXISTS"
