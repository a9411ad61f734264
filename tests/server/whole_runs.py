"""Whole runs of tiny clients over Flower's own objects, and what they left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from flwr.clientapp import ClientApp

from server.app import run_federation
from server.strategy import Outcome
from shared.config import RunConfig
from shared.transfer_layer import initial_arrays
from simulations.in_process_grid import InProcessGrid
from tests.server.tiny_clients import TEXT, Fault, honest, small_config, tiny_app

CONFIG = small_config()


def federate(
    tmp_path: Path,
    config: RunConfig = CONFIG,
    *,
    clients: int = 3,
    fault: Fault = honest,
    name: str = "run",
    app: ClientApp | None = None,
    **how: object,
) -> Outcome:
    folder, disks = tmp_path / name, tmp_path / f"{name}-disks"
    folder.mkdir(exist_ok=True)
    disks.mkdir(exist_ok=True)
    grid = InProcessGrid(app or tiny_app(disks, fault), clients)
    return run_federation(grid, config, folder, expected_clients=clients, text_dimension=TEXT, **how)  # type: ignore[arg-type]


def lines(tmp_path: Path, name: str = "run") -> list[dict[str, object]]:
    return [json.loads(line) for line in (tmp_path / name / "rounds.jsonl").read_text().splitlines()]


def moved(steps: float, config: RunConfig = CONFIG) -> dict[str, np.ndarray]:
    return {name: array + np.float32(steps) for name, array in initial_arrays(config.model, config.seed).items()}


def close(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return sorted(left) == sorted(right) and all(np.allclose(left[name], right[name], atol=1e-6) for name in left)
