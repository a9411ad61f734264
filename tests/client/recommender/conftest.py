"""Fixtures of the recommender's tests: two shops after a whole run, once for all tests, and a copy for those that change something."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client.recommender.recommender import Recommender
from tests.client.partner_world import World
from tests.client.recommender.shops import delivered_shops


@pytest.fixture(scope="session")
def open_shops(tmp_path_factory: pytest.TempPathFactory, text_cache: Path) -> World:
    """Nobody changes anything in these."""
    return delivered_shops(tmp_path_factory.mktemp("recommending-shops"), text_cache)


@pytest.fixture(scope="session")
def films(open_shops: World) -> Recommender:
    """The recommender of the film shop, to be asked only."""
    return Recommender.open(open_shops["films"])


@pytest.fixture
def shops(open_shops: World, tmp_path: Path) -> World:
    """A copy of its own for each test."""
    shutil.copytree(open_shops.root, tmp_path / "shops")
    return World(root=tmp_path / "shops", space_version=open_shops.space_version)
