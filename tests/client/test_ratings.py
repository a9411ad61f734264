"""Ratings from a partner's file to the loss: kept where the method reads them, refused by row and column where they are out of range."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import queries, rounds
from client.canary.interference import home_config, home_of, run_of
from client.data.histories import Histories
from client.delivery import Domain
from client.interest_distribution import SHARPNESS
from client.model.methods import make_model
from client.preparation import prepare
from client.settings import BenchmarkSettings, ClientSettings
from client.training import local_round
from client.training.examples import Examples, Passports
from shared import wire
from shared.config import ModelConfig, RunConfig, TrainingConfig
from shared.errors import DataError, InvalidInteraction
from shared.privacy.ledger import read_events
from shared.transfer_layer import initial_arrays
from tests.client.training.tiny_partner import config_of


def config(method: str = "knowledge-mf", **training: Any) -> RunConfig:
    plain = config_of(model=ModelConfig(method=method))
    return home_config(dataclasses.replace(plain, training=dataclasses.replace(plain.training, **training)))


def rated_home(folder: Path, run: RunConfig, rate: object = lambda row: 1 + row % 5) -> ClientSettings:
    """A partner whose every row carries a rating; ``rate`` says which, by the number of the row from 0."""
    settings = home_of(folder, run)
    table = folder / "interactions.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{header},stars", *(f"{row},{rate(n)}" for n, row in enumerate(rows))]) + "\n")  # type: ignore[operator]
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, rating_column="stars"))


def flat(histories: Histories) -> list[float]:
    assert histories.ratings is not None
    return [float(rating) for rating in histories.ratings]


@pytest.mark.journey
def test_a_run_reads_the_ratings_of_the_file(tmp_path: Path) -> None:
    run = config()
    settings = rated_home(tmp_path / "shop", run)
    update = run_of(settings, run, "run-1")
    assert all(np.isfinite(array).all() for array in update.arrays.values())
    prepared = prepare(settings, run)
    given = [line.split(",") for line in (tmp_path / "shop/interactions.csv").read_text().splitlines()[1:]]
    assert sorted(flat(prepared.everyone)) == sorted(float(row[-1]) for row in given)
    # of one user: the same items in the same order of time, each with its own rating
    by_item = {(row[0], row[1]): float(row[-1]) for row in given}
    names = {tuple(sorted(item for user, item in by_item if user == who)): who for who, _ in by_item}
    start, stop = prepared.everyone.offsets[:2]
    items = [prepared.item_ids[at] for at in prepared.everyone.items[start:stop]]
    who = names[tuple(sorted(items))]
    assert flat(prepared.everyone)[start:stop] == [by_item[who, item] for item in items]
    data = rounds.training_data(settings)
    assert data.histories.ratings is not None
    assert data.prototypes is not None
    assert data.prototypes.shape == (run.model.prototypes, run.model.dimension)
    # serving hands the same prototypes in: an untrained layer carries over what is known beside the interest itself
    model = make_model(run, seed=0)
    model.load_shared(initial_arrays(run.model, 0))
    served = Domain(settings=settings, config=run, prepared=prepared, space_version=data.space_version)
    brought = np.array(data.prototypes[:1])
    weight = 4 * run.training.knowledge_weight / run.training.temperature
    known = torch.softmax(SHARPNESS * torch.from_numpy(brought @ data.prototypes.T), dim=1).numpy() @ data.prototypes
    np.testing.assert_allclose(served.transfer(model.eval(), brought), brought + weight * known, atol=1e-5)


@pytest.mark.journey
def test_a_method_that_reads_no_ratings_keeps_none_and_asks_for_no_range(tmp_path: Path) -> None:
    run = config("residual")
    settings = rated_home(tmp_path / "shop", run, lambda row: 40 + row)
    run_of(settings, run, "run-1")
    assert prepare(settings, run).everyone.ratings is None
    assert not list(settings.at_home("prepared").rglob("ratings.npy"))


@pytest.mark.journey
def test_without_a_rating_column_the_method_is_implicit(tmp_path: Path) -> None:
    run = config()
    settings = home_of(tmp_path / "shop", run)
    run_of(settings, run, "run-1")
    assert rounds.training_data(settings).histories.ratings is None


@pytest.mark.journey
def test_ratings_out_of_range_are_refused_by_row_and_column_before_anything_is_paid(tmp_path: Path) -> None:
    run = config()
    settings = rated_home(tmp_path / "shop", run, lambda row: 7.25 if row in (3, 8) else 3)
    queries.hello(settings, wire.Hello(run_id="run-1", config_toml=run.to_toml()))
    with pytest.raises(InvalidInteraction, match="rows 4 and 9: 'stars' is outside the agreed range 1 to 5") as refused:
        queries.opened(settings)
    assert "7.25" not in str(refused.value)
    assert [event.kind for event in read_events(settings.ledger_path)] == ["genesis", "schedule"]
    assert not list(settings.at_home("prepared").rglob("*.npy"))


@pytest.mark.journey
def test_another_range_is_another_version_and_is_checked_anew(tmp_path: Path) -> None:
    settings = rated_home(tmp_path / "shop", config(), lambda row: row % 5)
    with pytest.raises(InvalidInteraction, match="outside the agreed range 1 to 5"):
        prepare(settings, config())
    from_zero = prepare(settings, config(rating_low=0.0))
    assert from_zero.folder != prepare(settings, config("residual")).folder
    assert min(flat(from_zero.everyone)) == 0.0


@pytest.mark.journey
def test_what_a_benchmark_keeps_back_takes_its_rating_along(tmp_path: Path) -> None:
    run = config()
    settings = rated_home(tmp_path / "shop", run)
    settings = dataclasses.replace(settings, benchmark=BenchmarkSettings(split_seed=0, hold_out_last=True))
    prepared = prepare(settings, run)
    everyone, training = prepared.everyone, prepared.training
    first, last = everyone.offsets[:2]
    assert flat(training)[: training.offsets[1]] == flat(everyone)[first : last - 1]


def histories(ratings: list[float] | None) -> Histories:
    """Two users: three items, one of them taken twice; and nothing."""
    return Histories(
        offsets=np.array([0, 4, 4]),
        items=np.array([2, 0, 2, 1], dtype=np.int32),
        times=np.arange(4),
        ratings=None if ratings is None else np.array(ratings, dtype=np.float32),
    )


def examples(ratings: list[float] | None) -> Examples:
    return Examples(
        histories=histories(ratings),
        coordinates=np.eye(3, dtype=np.float32),
        passports=Passports.none(2, 3),
        descriptor=np.zeros(1, dtype=np.float32),
        config=TrainingConfig(target_items=4),
        generator=np.random.default_rng(0),
    )


def test_a_target_carries_the_rating_that_its_item_got_last() -> None:
    last = {0: 2.0, 1: 4.0, 2: 3.0}  # item 2 was rated 1 and then 3
    draw, seen = examples([1.0, 2.0, 3.0, 4.0]), set()
    for _ in range(20):
        batch = draw(np.array([0, 1]))
        assert batch.target_ratings is not None
        for item, rating, there in zip(batch.targets[0].argmax(dim=1), batch.target_ratings[0], batch.target_mask[0], strict=True):
            if there:
                assert rating == last[int(item)]
                seen.add(int(item))
    assert seen == {0, 1, 2}
    assert draw(np.array([], dtype=np.int64)).target_ratings is not None
    nobody = draw(np.array([1])).target_ratings
    assert nobody is not None
    assert nobody.shape == draw(np.array([1])).targets.shape[:2]
    assert examples(None)(np.array([0])).target_ratings is None


def test_histories_keep_ratings_through_disk_and_selection(tmp_path: Path) -> None:
    rated = histories([1.0, 2.0, 3.0, 4.0])
    rated.save(tmp_path / "rated")
    histories(None).save(tmp_path / "plain")
    again = Histories.open(tmp_path / "rated")
    assert flat(again) == [1.0, 2.0, 3.0, 4.0]
    assert Histories.open(tmp_path / "plain").ratings is None
    assert flat(again.select(np.array([True, False]))) == [1.0, 2.0, 3.0, 4.0]
    assert flat(again.select(np.array([False, True]))) == []
    assert again.rated(np.array([0, 1]), 5).tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0], [0.0] * 5]
    with pytest.raises(DataError, match="no ratings"):
        histories(None).rated(np.array([0]), 2)
    with pytest.raises(DataError, match="not one rating"):
        histories([1.0])
    (tmp_path / "rated/ratings.npy").write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        Histories.open(tmp_path / "rated")


def test_a_rating_moves_the_loss_and_is_part_of_no_other_user() -> None:
    run = config_of(model=ModelConfig(dimension=3, descriptor_dimension=1, rank=1, prototypes=2, method="knowledge-mf"))
    model = make_model(run, seed=0)
    losses = []
    for ratings in ([1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]):
        batch = dataclasses.replace(examples(ratings)(np.array([0, 1])), prototypes=torch.eye(3)[:2])
        losses.append(model(batch).tolist())
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] == losses[1][1] == 0.0
    assert local_round.round_mechanism(run).dimension == sum(p.numel() for p in model.parameters())
