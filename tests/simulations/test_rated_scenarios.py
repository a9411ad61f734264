"""A scenario's column of ratings reaches the partners' settings, and from there what is prepared for the method that reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.preparation import prepare
from shared.errors import InvalidInteraction
from simulations.partners import data_folders, settle
from simulations.run_folder import RunFolder
from simulations.scenario_config import load
from simulations.synthetic_domains import write

WORLD = {"synthetic.items": 12, "synthetic.users_alone": 4, "synthetic.users_linked": 4, "data.kind": "folder", "data.set": "world"}


@pytest.mark.parametrize(
    ("method", "column", "low", "kept"),
    [("knowledge-mf", "rating", 0.0, True), ("knowledge-mf", "", 0.0, False), ("residual", "rating", 9.0, False)],
)
@pytest.mark.journey
def test_ratings_are_prepared_where_they_are_named_and_read(tmp_path: Path, method: str, column: str, low: float, kept: bool) -> None:
    chosen = {**WORLD, "data.ratings": column, "model.method": method, "training.rating_low": low}
    scenario = load("demo", overrides=chosen)
    write(tmp_path / "world", scenario.synthetic, 0)
    folder = RunFolder(tmp_path / "run").create(scenario.run)
    (settings, *_) = settle(folder, scenario, data_folders(scenario, tmp_path), split_seed=0, ledgers=None)
    assert settings.data.rating_column == column
    ratings = prepare(settings, scenario.run).training.ratings
    assert (ratings is not None) == kept
    if ratings is not None:
        assert np.unique(ratings).tolist() == [1.0]  # invented people rate everything 1


@pytest.mark.journey
def test_a_range_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    chosen = {**WORLD, "data.ratings": "rating", "model.method": "knowledge-mf", "training.rating_low": 2.0}
    scenario = load("demo", overrides=chosen)
    write(tmp_path / "world", scenario.synthetic, 0)
    folder = RunFolder(tmp_path / "run").create(scenario.run)
    (settings, *_) = settle(folder, scenario, data_folders(scenario, tmp_path), split_seed=0, ledgers=None)
    with pytest.raises(InvalidInteraction, match="'rating' is outside the agreed range 2 to 6"):
        prepare(settings, scenario.run)
