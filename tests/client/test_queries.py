"""What a client answers besides training, and what it remembers between processes."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from client import queries
from client.key_rotation import own_keys
from client.preparation import prepare
from client.queries import CurrentRun
from client.settings import ConsentSettings
from client.training import local_round
from shared import wire
from shared.config import RunConfig
from shared.errors import LedgerBroken, LedgerLocked, Refusal, StateError
from shared.interest_space import Moments
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism
from tests.client.partner_world import CONFIG, RUN, World, descriptor_query

SILENT = ConsentSettings(catalogue_moments=False, catalogue_centroids=False, catalogue_descriptor=False)


def test_moments_are_those_of_the_public_catalogue(world: World) -> None:
    reply = queries.moments(world["books"], wire.MomentsQuery(run_id=RUN))
    expected = Moments.of(prepare(world["books"], CONFIG).text_vectors)

    assert isinstance(reply, wire.MomentsReply)
    assert reply.count == expected.count
    np.testing.assert_array_equal(reply.outer, expected.outer)


def test_who_declines_opens_no_file(world: World) -> None:
    settings = dataclasses.replace(world["books"], consent=SILENT)
    space = prepare(settings, CONFIG).space(world.space_version)
    shutil.rmtree(settings.at_home("prepared"))
    (world.root / "books/items.csv").unlink()

    answers = [
        queries.moments(settings, wire.MomentsQuery(run_id=RUN)),
        queries.prototype_centroids(settings, wire.CentroidsQuery(mean=space.mean, basis=space.basis, scale=space.scale)),
    ]
    assert answers == [wire.Declined(), wire.Declined()]


def test_a_declined_descriptor_still_fixes_the_space(world: World) -> None:
    settings = dataclasses.replace(world["books"], consent=SILENT)
    space = prepare(settings, CONFIG).space(world.space_version)
    (settings.at_home("run") / "space_version").unlink()

    assert queries.descriptor(settings, descriptor_query(space)) == wire.Declined()
    assert CurrentRun(settings).space_version() == world.space_version


def test_a_message_of_another_run_is_refused(world: World) -> None:
    with pytest.raises(StateError, match="another run"):
        queries.moments(world["books"], wire.MomentsQuery(run_id="run-2"))


def greeting(run_id: str) -> wire.Hello:
    return wire.Hello(run_id=run_id, config_toml=CONFIG.to_toml())


def test_a_ledger_that_is_held_or_broken_is_no_refusal_of_what_the_run_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal's code would leave the client and blame the run; the partner's own trouble is `unavailable`, like every other cause."""
    books = world["books"]
    with Ledger.open(books.ledger_path, signer=own_keys(books)), pytest.raises(LedgerLocked):
        queries.hello(books, greeting("run-2"))

    def meanwhile(config: RunConfig) -> Mechanism:
        """Somebody puts a copy in the ledger's place while it is open, right before the run is admitted."""
        copy = books.ledger_path.with_name("copy")
        shutil.copy(books.ledger_path, copy)
        copy.replace(books.ledger_path)
        return round_mechanism(config)

    round_mechanism = local_round.round_mechanism
    monkeypatch.setattr(local_round, "round_mechanism", meanwhile)
    with pytest.raises(LedgerBroken, match="replaced while it was open"):
        queries.hello(books, greeting("run-3"))


def test_what_the_run_asked_for_is_refused_with_a_code(world: World) -> None:
    books = world["books"]
    more = dataclasses.replace(CONFIG, privacy=dataclasses.replace(CONFIG.privacy, rounds=3))
    costly = dataclasses.replace(CONFIG, privacy=dataclasses.replace(CONFIG.privacy, noise_multiplier=0.3, rounds=50))
    asked = {
        "range": wire.Hello(run_id=RUN, config_toml=more.to_toml()),
        "ceiling": wire.Hello(run_id="run-2", config_toml=costly.to_toml()),
    }

    for code, question in asked.items():
        with pytest.raises(Refusal) as refused:
            queries.hello(books, question)
        assert refused.value.code == code


def test_the_next_run_begins_without_the_last_runs_space_and_a_resumed_one_keeps_it(world: World) -> None:
    run = CurrentRun(world["books"])
    run.begin(RUN, CONFIG)
    assert run.space_version() == world.space_version

    run.begin("run-2", CONFIG)
    with pytest.raises(StateError, match="no space version yet"):
        run.space_version()


def test_before_hello_there_is_no_run(world: World) -> None:
    shutil.rmtree(world["books"].at_home("run"))

    assert CurrentRun(world["books"]).config_or_none() is None
    with pytest.raises(StateError, match="greeted"):
        queries.opened(world["books"])


def test_centroids_lie_in_the_interest_space(world: World) -> None:
    space = prepare(world["books"], CONFIG).space(world.space_version)
    reply = queries.prototype_centroids(world["books"], wire.CentroidsQuery(mean=space.mean, basis=space.basis, scale=space.scale))

    assert isinstance(reply, wire.CentroidsReply)
    assert reply.centroids.shape == (CONFIG.model.prototypes, CONFIG.model.dimension)
    assert (np.linalg.norm(reply.centroids, axis=1) <= 1.0 + 1e-5).all()
