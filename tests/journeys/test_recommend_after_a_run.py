"""Whoever has a finished simulated run can ask its partners for recommendations, though their prepared data were deleted at its end."""

from pathlib import Path

import numpy as np
import pytest

from client.recommender.recommender import Recommender
from client.settings import ClientSettings
from simulations.run_folder import RunFolder
from simulations.scenario import run_scenario
from tests.journeys.tiny_world import DOMAINS, tiny

pytestmark = pytest.mark.journey


def test_a_partner_of_a_finished_run_recommends_to_its_users(tmp_path: Path) -> None:
    folder = RunFolder(run_scenario("demo", out=tmp_path, overrides=tiny(privacy__rounds=1), with_target_only=False))
    for domain in DOMAINS:
        settings = ClientSettings.read(folder.client(domain) / "partner.toml")
        assert [path.name for path in settings.at_home("prepared").iterdir()] == ["spaces"]  # all else can be made again
        recommender = Recommender.open(settings)
        users = recommender.all_users()
        lists = list(recommender.batch(users, 5))
        scores = np.concatenate([frame["score"].to_numpy() for frame in lists])
        assert sum(map(len, lists)) == 5 * len(users)
        assert np.isfinite(scores).all()
