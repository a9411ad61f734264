"""What the service refuses: a status and the name of a field, never a value, never a traceback; and the next caller is none the worse."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from client.serving_wire import CLASSES
from tests.client.partner_world import CONFIG, World
from tests.client.recommender.shops import ITEMS
from tests.client.serving.counter import Counter, served

SECRET = "secret-of-somebody"
D = CONFIG.model.dimension
LIKED = 2


def refused(films: Counter, method: str, code: str, field: str, **fields: object) -> None:
    status, text = films.ask(method, **fields)
    assert (status, field in text) == (code, True), (fields, status, text)
    assert SECRET not in text
    assert "Traceback" not in text
    assert len(text) < 300


def test_users_and_items_that_are_not_there_are_not_found(films: Counter) -> None:
    refused(films, "Recommend", "NOT_FOUND", "user", user=SECRET)
    refused(films, "Explain", "NOT_FOUND", "user", user=SECRET, item="f01")
    refused(films, "Explain", "NOT_FOUND", "item", user="p003", item=SECRET)
    refused(films, "Similar", "NOT_FOUND", "item", item=SECRET)
    refused(films, "Similar", "NOT_FOUND", "item", item="")
    refused(films, "Observe", "NOT_FOUND", "item", user="p003", item=SECRET, kind=LIKED)
    refused(films, "Recommend", "NOT_FOUND", "blocked", user="p003", blocked=["f01", SECRET])


def test_fields_that_cannot_be_are_named(films: Counter) -> None:
    most = f"'k' is outside 1 to {ITEMS}"
    refused(films, "Recommend", "INVALID_ARGUMENT", most, user="p003", k=0)
    refused(films, "Recommend", "INVALID_ARGUMENT", most, user="p003", k=ITEMS + 1)
    refused(films, "Recommend", "INVALID_ARGUMENT", most, user="p003", k=2**32 - 1)
    refused(films, "Similar", "INVALID_ARGUMENT", "'k'", item="f01", k=0)
    refused(films, "Similar", "INVALID_ARGUMENT", "'k'", item="f01", k=ITEMS)
    for user in ("", "   ", "\t\n"):
        refused(films, "Recommend", "INVALID_ARGUMENT", "'user'", user=user)
        refused(films, "Explain", "INVALID_ARGUMENT", "'user'", user=user, item="f01")
        refused(films, "Observe", "INVALID_ARGUMENT", "'user'", user=user, item="f01", kind=LIKED)
    refused(films, "Observe", "INVALID_ARGUMENT", "'user'", user="x" * 600, item="f01", kind=LIKED)
    for diversity in (-0.1, 1.1, math.nan, math.inf):
        refused(films, "Recommend", "INVALID_ARGUMENT", "'diversity'", user="p003", diversity=diversity)
    refused(films, "Recommend", "INVALID_ARGUMENT", "'blocked'", user="p003", blocked=["f01"] * 10_001)


def test_declared_interests_that_nobody_can_read_are_refused(films: Counter) -> None:
    for text in ("", "  \n "):
        refused(films, "Recommend", "INVALID_ARGUMENT", "declared interests are empty", declared=text)
    refused(films, "Recommend", "INVALID_ARGUMENT", "more than 20,000 characters", declared=SECRET * 55_556)  # 1 MB
    assert films.ask("Recommend", declared="x" * 20_000, k=1)[0] == "OK"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_declared_vector_with_a_number_that_is_none_is_refused(shops: World, films: Counter, bad: float) -> None:
    vector = [*np.ones(D - 1).tolist(), bad]
    refused(films, "Recommend", "INVALID_ARGUMENT", "not finite", interest=vector, space_version=shops.space_version)


def test_a_declared_vector_of_another_space_or_length_is_refused_and_a_good_one_answered(shops: World, films: Counter) -> None:
    good = np.ones(D).tolist()
    refused(films, "Recommend", "INVALID_ARGUMENT", "another interest space", interest=good, space_version="0" * 16)
    refused(films, "Recommend", "INVALID_ARGUMENT", "another interest space", interest=good)
    refused(films, "Recommend", "INVALID_ARGUMENT", f"{D} numbers", interest=good[1:], space_version=shops.space_version)
    assert films.ask("Recommend", interest=good, space_version=shops.space_version, k=1)[1].source == "declared"


def test_observations_that_cannot_be_are_refused_and_change_nothing(films: Counter) -> None:
    before = films.items(user="p003", k=10)
    for kind in (0, 4, -1, 1000):
        refused(films, "Observe", "INVALID_ARGUMENT", "'kind'", user="p003", item="f01", kind=kind)
    for at in (-1, int(time.time()) + 100_000, 2**62):
        refused(films, "Observe", "INVALID_ARGUMENT", "'at'", user="p003", item="f01", kind=LIKED, at=at)
    assert films.items(user="p003", k=10) == before


def test_bytes_that_are_no_message_are_refused_by_every_method(films: Counter) -> None:
    not_text = b"\x0a\x02\xff\xfe"  # field 1, a string that is not UTF-8
    for method in ("Recommend", "Similar", "Explain", "Observe"):
        for garbage in (b"\xff" * 40, not_text):
            status, text = films.raw(method, garbage)
            assert status == "INVALID_ARGUMENT"
            assert f"the request is no {method}Request" in text
    assert films.stream(iter([b"\xff" * 40]))[0] == "INVALID_ARGUMENT"
    assert films.ask("Recommend", user="p003")[0] == "OK"


def test_an_empty_message_is_answered_like_any_other(films: Counter) -> None:
    assert films.raw("Recommend", b"")[1].source == "popularity"  # nobody in particular
    assert films.raw("Similar", b"")[0] == "NOT_FOUND"
    assert films.raw("Explain", b"")[0] == "INVALID_ARGUMENT"
    assert films.raw("Observe", b"")[0] == "INVALID_ARGUMENT"


def test_what_goes_wrong_inside_is_told_on_this_machine_only(shops: World) -> None:
    with served(shops["films"]) as films:
        broken = films.service.served.current()

        def fails(*_: object, **__: object) -> None:
            raise RuntimeError(SECRET)

        broken.recommend = broken.similar = fails  # type: ignore[method-assign,assignment]
        for method, fields in {"Recommend": {"user": "p003"}, "Similar": {"item": "f01"}}.items():
            status, text = films.ask(method, **fields)
            assert (status, text) == ("INTERNAL", "something unexpected; the reason is told on the server")
        assert films.told.wait_for("unexpected RuntimeError")
        assert SECRET not in "".join(films.told.lines)
        assert films.ask("Explain", user="p003", item="f01")[0] == "OK"


def test_observations_that_cannot_be_written_are_unavailable_and_lists_go_on(shops: World) -> None:
    settings = shops["films"]
    settings.at_home("live.sqlite").mkdir()
    with served(settings) as films:
        status, text = films.ask("Observe", user="p003", item="f01", kind=LIKED)
        assert status == "UNAVAILABLE"
        assert "live.sqlite" in text
        assert films.ask("Recommend", user="p003")[0] == "OK"


def test_every_message_can_be_made_of_what_the_page_says() -> None:
    for name, made in CLASSES.items():
        assert made.DESCRIPTOR.name == name
        assert made().SerializeToString() == b""
