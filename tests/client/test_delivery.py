"""Delivery: serving heads are fitted, on exact data, and written to one folder that training never reads."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from client import delivery
from client.delivery import OWN, Domain, serving_heads, serving_warm_head
from client.preparation import TRAIN, prepare
from client.queries import CurrentRun
from client.serving_state import ServingFolder
from client.settings import ClientSettings
from client.state import StateFolder
from shared import wire
from shared.errors import StateError
from tests.client.partner_world import CONFIG, World, final_layer


def contents(home: Path) -> dict[str, str]:
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in home.rglob("*") if path.is_file()}


def domain(settings: ClientSettings, version: str) -> Domain:
    return Domain(settings=settings, config=CONFIG, prepared=prepare(settings, CONFIG), space_version=version)


def test_a_second_delivery_writes_the_serving_folder_and_nothing_else(done: World) -> None:
    home = done["films"].at_home("")
    before = contents(home)

    assert delivery.deliver(done["films"], final_layer()) == wire.Ok()

    after = contents(home)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed
    assert {Path(name).parts[0] for name in changed} == {"serving"}


def test_there_is_a_head_for_each_source_and_one_for_own_histories(done: World) -> None:
    state = ServingFolder(done["films"].at_home("serving")).current()

    assert state is not None
    assert set(serving_heads(state)) == {"books", OWN}
    assert state.meta["run_id"] == "run-1"
    for name, array in final_layer().arrays.items():
        np.testing.assert_array_equal(state.arrays[f"layer/{name}"], array)


def test_the_same_layer_gives_the_same_heads(done: World) -> None:
    folder = ServingFolder(done["films"].at_home("serving"))
    first = folder.current()
    delivery.deliver(done["films"], final_layer())
    second = folder.current()

    assert first is not None
    assert second is not None
    assert all(np.array_equal(array, second.arrays[name]) for name, array in first.arrays.items())


def test_the_blend_for_warm_users_is_kept_beside_the_heads_and_is_that_of_training_users(done: World) -> None:
    state = ServingFolder(done["films"].at_home("serving")).current()
    assert state is not None
    here = domain(done["films"], state.space_version)
    counts = np.bincount(here.prepared.training.items, minlength=len(here.coordinates))

    kept, fitted = serving_warm_head(state), here.fit_warm_head()

    assert kept is not None
    np.testing.assert_allclose(np.expm1(kept.log_counts), counts, rtol=1e-5)
    assert (kept.blend, kept.max_history) == (fitted.blend, CONFIG.training.max_history_items)
    items, mask = here.prepared.training.padded(np.arange(5), 10)
    coordinates = np.asarray(here.coordinates)
    np.testing.assert_array_equal(kept.scores(items, mask, coordinates), fitted.scores(items, mask, coordinates))


def test_a_serving_state_of_an_earlier_version_has_no_blend(done: World) -> None:
    state = ServingFolder(done["films"].at_home("serving")).current()
    assert state is not None
    older = {name: array for name, array in state.arrays.items() if not name.startswith("warm/")}

    assert serving_warm_head(dataclasses.replace(state, arrays=older)) is None


def test_before_a_round_there_is_nothing_to_deliver_into(world: World) -> None:
    with pytest.raises(StateError, match="nothing was trained here"):
        delivery.deliver(world["films"], final_layer())


def test_a_model_of_another_run_is_not_served(done: World) -> None:
    settings = done["films"]
    CurrentRun(settings).begin("run-2", CONFIG)
    CurrentRun(settings).fix_space(done.space_version)

    with pytest.raises(StateError, match="nothing was trained here in this run"):
        delivery.deliver(settings, dataclasses.replace(final_layer(), run_id="run-2"))


def test_a_model_of_another_space_is_not_served(done: World) -> None:
    folder = StateFolder(done["films"].at_home("state"))
    state = folder.current()
    assert state is not None
    folder.replace(dataclasses.replace(state, space_version="0" * 16))

    with pytest.raises(StateError, match="nothing was trained here in this run"):
        delivery.deliver(done["films"], final_layer())


def test_counts_and_passports_of_heads_are_those_of_training_users(done: World) -> None:
    films = domain(done["films"], done.space_version)
    prepared = films.prepared
    users, vectors = films.training_passports("books")
    counts = films.counts("books")
    rows = prepared.training_rows[users]

    assert len(users) == len(vectors) == len(set(users.tolist())) > 10
    assert (prepared.roles[rows] == TRAIN).all()
    assert counts.shape == (2, len(films.coordinates))
    assert counts[0].sum() == len(prepared.training.items)
    assert counts[1].sum() == prepared.training.lengths[users].sum()


def test_without_a_model_the_transfer_is_the_identity(done: World) -> None:
    films = domain(done["films"], done.space_version)
    _, vectors = films.training_passports("books")

    np.testing.assert_array_equal(films.transferred(None, "books")[1], vectors)
    moved = films.transferred(delivery.delivered_model(done["films"], CONFIG, final_layer().arrays), "books")[1]
    assert not np.allclose(moved, vectors)
