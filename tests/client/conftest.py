"""Fixtures of the client's tests."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

from shared.privacy.ledger import Ledger
from tests.client.gated_domain import CONFIG, MECHANISM, RUN, Domain
from tests.client.partner_world import World, settle, trained
from tests.shared.privacy.bookshop import KEYS


@pytest.fixture(scope="session")
def admitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger in which the run is admitted; each test works on its own copy."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    with Ledger.create(path, signer=KEYS, domain="arts", ceiling_epsilon=8.0, delta=1e-6, set_by="the partner") as ledger:
        ledger.admit(run_id=RUN, config_hash=CONFIG.config_hash, mechanism=MECHANISM, rounds=4, reserve=1)
    return path


@pytest.fixture
def domain(tmp_path: Path, admitted: Path) -> Domain:
    for file in admitted.parent.iterdir():
        shutil.copy(file, tmp_path / file.name)
    return Domain(manifest=tmp_path / "egress.jsonl", ledger=tmp_path / admitted.name)


@pytest.fixture
def flower_process(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower wants to know whose process this is; and what the gate logs on this machine stays out of the test's output."""
    for name, value in {"_run_id": 1, "_node_id": 2, "_task_id": 3}.items():
        monkeypatch.setattr(TaskIdentity, name, value)
    caplog.set_level(logging.CRITICAL, logger="isthmus.egress")


@pytest.fixture(scope="session")
def text_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of the real language model, made once for all tests."""
    return tmp_path_factory.mktemp("text-cache")


@pytest.fixture(scope="session")
def settled(tmp_path_factory: pytest.TempPathFactory, text_cache: Path) -> World:
    return settle(tmp_path_factory.mktemp("world"), text_cache)


@pytest.fixture
def world(settled: World, tmp_path: Path) -> World:
    """Two partners who were greeted and hold an interest space; each test works on its own copy."""
    shutil.copytree(settled.root, tmp_path / "world")
    return World(root=tmp_path / "world", space_version=settled.space_version)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, text_cache: Path) -> World:
    return trained(tmp_path_factory.mktemp("finished"), text_cache)


@pytest.fixture
def done(finished: World, tmp_path: Path) -> World:
    """The same partners after a whole run; each test works on its own copy."""
    shutil.copytree(finished.root, tmp_path / "done")
    return World(root=tmp_path / "done", space_version=finished.space_version)
