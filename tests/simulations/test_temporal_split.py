"""The temporal split of a scenario: one moment for all domains, and a whole run in which nothing of later trains."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from client.data.pseudonyms import PseudonymTable
from client.data.split import TRAIN
from client.preparation import prepare
from client.settings import ClientSettings
from shared.errors import ConfigError, DataError
from simulations.partners import cut_of
from simulations.ranks import read_ranks
from simulations.run_folder import RunFolder
from simulations.scenario import run_scenario
from simulations.scenario_config import DataConfig
from tests.journeys.tiny_world import DOMAINS, metrics, tiny


def written(folder: Path, name: str, times: list[int | str]) -> Path:
    path = folder / f"{name}.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"u,i,{time}\n" for time in times))
    return path


def test_the_moment_is_that_of_all_domains_together(tmp_path: Path) -> None:
    files = {"a": written(tmp_path, "a", [10, 30, 50, 70]), "b": written(tmp_path, "b", [20, 40, 60, 80, 90, 100])}

    assert cut_of(files, DataConfig(split="temporal", before_cut=0.8)) == 90  # 10 to 80 are before it: eight of ten
    assert cut_of(files, DataConfig(split="temporal", before_cut=0.5)) == 60
    assert cut_of({"a": files["a"]}, DataConfig(split="temporal", before_cut=0.8)) == 70


def test_an_order_is_no_time(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="times are an order only"):
        cut_of({"a": written(tmp_path, "a", [1, 2, 3])}, DataConfig(split="temporal", time="order"))


@pytest.mark.parametrize("times", [[], [5, 5, 5], ["yesterday"]], ids=["none", "one-moment", "unreadable"])
def test_where_no_moment_divides_the_data_the_error_says_so(tmp_path: Path, times: list[int | str]) -> None:
    with pytest.raises(DataError, match="no moment divides"):
        cut_of({"a": written(tmp_path, "a", times)}, DataConfig(split="temporal"))


@pytest.mark.journey
def test_a_run_is_trained_before_the_moment_and_asked_about_after_it(tmp_path: Path) -> None:
    folder = RunFolder(run_scenario("demo", out=tmp_path, overrides=tiny(data__split="temporal"), keep_prepared=True))
    files = {domain: folder.path / "data" / domain / "interactions.csv" for domain in DOMAINS}
    cut = cut_of(files, DataConfig(split="temporal"))

    assert sorted(metrics(folder.path)["warm"]) == sorted(DOMAINS)
    for domain in DOMAINS:
        settings = ClientSettings.read(folder.client(domain) / "partner.toml")
        assert settings.benchmark.cut_s == cut
        prepared = prepare(settings, folder.config)
        assert prepared.everyone.times.max() < cut
        with files[domain].open() as file:
            rows = [(row["user_id"], row["item_id"]) for row in csv.DictReader(file) if int(row["timestamp"]) >= cut]
        users = PseudonymTable.open(settings.at_home("keys") / "external_ids.parquet").external(prepared.everyone.pseudonyms)
        trained = {user for user, role in zip(users, prepared.roles, strict=True) if role == TRAIN}
        ranks = read_ranks(folder.ranks / f"warm-{domain}.npz")
        assert {"popularity", "ease", "federated", "recommender"} <= set(ranks.ranks)
        assert len(ranks.users) == len({user for user, _ in rows} & trained)  # a demo's people take an item once
        assert int(np.diff(ranks.offsets).sum()) == len([user for user, _ in rows if user in trained])
