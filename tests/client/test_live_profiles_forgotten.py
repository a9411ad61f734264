"""`forget` reaches what a service observed, and users whom only a service knows."""

from __future__ import annotations

import contextlib
import time

import pytest

from client.forgetting import finish, forget
from client.live_profiles import LIKED, ForgottenUser, LiveProfiles
from client.passport_exchange import export, take_in
from client.preparation import prepare
from client.register import Register
from shared.errors import UsageError
from tests.client.partner_world import CONFIG, World, link_id
from tests.client.test_forgetting import pseudonym_of, traces

NEW = "somebody-new"
"""In no file of the partner's."""


def test_what_was_observed_of_a_user_goes_with_the_rest(done: World) -> None:
    settings = done["books"]
    with contextlib.closing(LiveProfiles.of(settings)) as live:
        for user in ("p003", "p004"):
            live.observe(user, f"taken-by-{user}", LIKED)

        forget(settings, ["p003"])

        assert len(live.of_user("p003")) == 0
        assert live.of_user("p004").items == ("taken-by-p004",)
        with pytest.raises(ForgottenUser):
            live.observe("p003", "b1", LIKED)
    assert traces(settings, b"taken-by-p003") == []
    assert traces(settings, pseudonym_of(settings, "p003")) == ["home/register.sqlite"]


def test_a_user_whom_only_the_service_knows_is_forgotten_with_the_passport_that_came_for_them(done: World) -> None:
    books, films = done["books"], done["films"]
    with contextlib.closing(LiveProfiles.of(films)) as live:
        live.link(NEW, "books", link_id("p007"))  # the link of somebody in the files is taken: p007 has no row in this story
        with Register.of(films) as register:
            before, _ = register.imported("books", space_version=done.space_version, now=int(time.time()))
        assert link_id("p007") in before

        forget(films, [NEW])

        assert live.links_of(NEW) == {}
    with Register.of(films) as register:
        after, _ = register.imported("books", space_version=done.space_version, now=int(time.time()))
    assert set(before) - set(after) == {link_id("p007")}
    again = export(books, CONFIG, prepare(books, CONFIG), "films", done.space_version)
    take_in(films, done.space_version, again.path, dimension=CONFIG.model.dimension)
    with Register.of(films) as register:
        assert link_id("p007") not in register.imported("books", space_version=done.space_version, now=int(time.time()))[0]


def test_a_user_nobody_knows_is_still_unknown_and_no_file_is_made_by_asking(done: World) -> None:
    settings = done["books"]
    with pytest.raises(UsageError, match="not known"):
        forget(settings, [NEW])
    finish(settings)
    assert not settings.at_home("live.sqlite").exists()
