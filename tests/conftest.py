"""What every room's tests share: where the data sets are, and nobody to talk to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.client.data import postgres

ROOT = Path(__file__).resolve().parents[1]

# Examples are drawn anew on a developer's desk and are the same ones on every run of CI; a slow machine is not a failure.
settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

# No test asks a model hub, a statistics server or an update server.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_set() -> Callable[[str], Path]:
    """Folder of a development data set by name; without `ISTHMUS_DATA` the test skips and says so."""

    def find(name: str) -> Path:
        root = os.environ.get("ISTHMUS_DATA")
        if not root:
            pytest.skip("ISTHMUS_DATA is not set: the data sets of real domains are not part of the project")
        folder = Path(root) / name
        assert folder.is_dir(), f"ISTHMUS_DATA is set, but holds no folder '{name}'"
        return folder

    return find


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Server]:
    """A real PostgreSQL server, one for each process of the tests; tables and databases of others may lie in it."""
    found = postgres.find()
    if found is None:
        pytest.skip(postgres.MISSING)
    with postgres.running(found) as server:
        yield server
