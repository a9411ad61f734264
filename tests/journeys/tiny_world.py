"""Small worlds for whole runs: the real apps, partners and ledgers; only the numbers are small."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.app import build_client_app
from client.egress import Gate
from client.settings import ClientSettings
from server.checkpoints import Checkpoints
from server.strategy import Outcome
from simulations import federation
from simulations.controls import one_of
from simulations.partners import settle
from simulations.run_folder import RunFolder
from simulations.scenario_config import Scenario, load
from simulations.synthetic_domains import KINDS
from simulations.synthetic_domains import write as write_synthetic

DOMAINS = tuple(sorted(KINDS))
TINY: Mapping[str, Any] = {
    "synthetic.items": 60,
    "synthetic.users_alone": 60,
    "synthetic.users_linked": 40,
    "synthetic.interactions": 7,
    "privacy.rounds": 2,
    "privacy.reserve_rounds": 1,
    "privacy.steps_per_round": 3,
    "privacy.sampling_rate": 0.25,
    "privacy.expected_batch_users": 30,
    "model.dimension": 16,
    "model.descriptor_dimension": 4,
    "model.prototypes": 8,
    "training.catalogue_negatives": 64,
    "compute.torch_threads": 1,
}
NO_NOISE: Mapping[str, Any] = {"privacy__noise": "none"}
"""The noise-free test build: clipping, grid, sampling and ledger as ever, so that two runs can be compared in bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A run folder with settled partners; nothing has been sent yet."""

    folder: RunFolder
    scenario: Scenario
    settings: list[ClientSettings]

    @property
    def app(self) -> Gate:
        """The app that every partner runs."""
        return build_client_app(functools.partial(one_of, self.settings))

    def federate(self, engine: str = "in-process", *, app: Gate | None = None, **how: Any) -> Outcome:
        """The federation alone, without controls and evaluation."""
        return federation.run(self.scenario.run, self.folder, engine, app or self.app, clients=len(self.settings), **how)


def tiny(**more: Any) -> dict[str, Any]:
    """Overrides for a tiny run; ``privacy__rounds=3`` stands for ``privacy.rounds``."""
    return {**TINY, **{key.replace("__", "."): value for key, value in more.items()}}


def world(
    path: Path,
    *,
    sources: dict[str, Path] | None = None,
    overrides: Mapping[str, Any] = TINY,
    seed: int = 0,
    ledgers: Path | None = None,
) -> World:
    """Settles partners in a new run folder, as `run_scenario` does.

    Args:
        path: of the run folder.
        sources: domain -> folder of files; None makes the synthetic ones.
        overrides: dotted key -> value.
        seed: of the world and the run.
        ledgers: folder of ledgers that outlive the run.
    """
    scenario = load("demo", seed=seed, overrides=overrides)
    folder = RunFolder(path).create(scenario.run)
    if sources is None:
        write_synthetic(path / "data", scenario.synthetic, seed)
        sources = {domain: path / "data" / domain for domain in DOMAINS}
    return World(folder=folder, scenario=scenario, settings=settle(folder, scenario, sources, split_seed=0, ledgers=ledgers))


def write_domain(
    folder: Path, items: Sequence[tuple[str, str]], histories: Mapping[str, Sequence[int]], *, interactions: str = "interactions.csv"
) -> Path:
    """Writes a partner's two files.

    Args:
        folder: of the domain; is made.
        items: (id, title).
        histories: user id -> positions in ``items``, oldest first.
        interactions: file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", "title", "categories"), *((item, title, "") for item, title in items)])
    with (folder / interactions).open("w", newline="") as file:
        rows = [(user, items[i][0], 1_600_000_000 + 86_400 * at) for user, taken in histories.items() for at, i in enumerate(taken)]
        csv.writer(file).writerows([("user_id", "item_id", "timestamp"), *rows])
    return folder


def layer(run: Path) -> dict[str, np.ndarray]:
    """The newest transfer layer of a run folder."""
    checkpoint, damaged = Checkpoints(run / "transfer_layer").newest()
    assert damaged == []
    return checkpoint.layer


def farthest(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> float:
    """Largest difference of any coordinate of two layers."""
    assert sorted(left) == sorted(right)
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


def metrics(run: Path) -> dict[str, Any]:
    """metrics.json as it stands."""
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found
