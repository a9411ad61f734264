"""Two shops after a whole run, and the real service of one of them on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.partner_world import World
from tests.client.recommender.shops import delivered_shops
from tests.client.serving.counter import Counter, served


@pytest.fixture(scope="session")
def delivered(tmp_path_factory: pytest.TempPathFactory, text_cache: Path) -> World:
    return delivered_shops(tmp_path_factory.mktemp("served-shops"), text_cache)


@pytest.fixture
def shops(delivered: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Each test works on its own copy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    shutil.copytree(delivered.root, tmp_path / "shops")
    return World(root=tmp_path / "shops", space_version=delivered.space_version)


@pytest.fixture
def films(shops: World) -> Iterator[Counter]:
    """The service of films, in the clear on loopback."""
    with served(shops["films"]) as counter:
        yield counter
