"""The ServerApp as Flower calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from server import app as server_app
from server.strategy import Coordinator
from shared.errors import ConfigError
from shared.privacy.receipts import read_receipts
from simulations.in_process_grid import InProcessGrid
from tests.server.tiny_clients import TEXT, small_config, tiny_app


def context(**run_config: str) -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config))


@pytest.fixture
def short_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny clients' catalogue vectors are shorter than those of the built-in text encoder."""
    make = Coordinator.__init__
    monkeypatch.setattr(Coordinator, "__init__", lambda self, **how: make(self, **({"text_dimension": TEXT} | how)))


@pytest.mark.usefixtures("short_vectors")
def test_the_app_runs_what_its_one_key_names_and_resumes_by_the_same_command(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(small_config().to_toml())
    (tmp_path / "partners.toml").write_text("[arts]\n[books]\nceiling_epsilon = 4.0\n")
    grid = InProcessGrid(tiny_app(tmp_path), 2)
    for _ in range(2):
        server_app.app(grid=grid, context=context(run=str(tmp_path / "run.toml")))
    folder = tmp_path / "runs" / "tiny"
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 3
    assert json.loads((folder / "federation.json").read_text())["domains"] == ["arts", "books"]
    assert sorted(read_receipts(tmp_path / "receipts.json")) == ["arts", "books"]  # outside the run: the next one goes on from them
    assert sorted(json.loads((folder / "privacy_overview.json").read_text())["domains"]) == ["arts", "books"]


def test_without_a_run_the_app_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match="no run is named"):
        server_app.app(grid=None, context=context(run=""))  # type: ignore[arg-type]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml cannot be read"):
        server_app.app(grid=None, context=context(run=str(tmp_path / "missing.toml")))  # type: ignore[arg-type]
