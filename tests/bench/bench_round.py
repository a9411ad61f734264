"""What a round costs besides local training: ledger, gate, state, messages, admission, averaging, checkpoint.

Two domains of the size of `arts_office` (18,000 items, 9,500 users, a third of them linked, 10 steps a round) in an in-process federation.
Local training is the time inside `dp_sgd.train`; the figure is the share of the rest in a round's seconds, as `rounds.jsonl` has them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from client import delivery
from client.app import build_client_app
from client.preparation import prepare
from client.training import local_round
from server.schedule import solved
from shared import wire
from shared.config import ComputeConfig, PrivacyConfig, RunConfig
from simulations.controls import one_of
from simulations.federation import run as federate
from simulations.partners import settle
from simulations.run_folder import RunFolder
from simulations.scenario_config import Scenario

SHARE = "share of a round outside local training"
AIMS = {SHARE: ("<=", 0.05)}

_WORDS = ("brush", "canvas", "paper", "folder", "stapler", "pencil", "easel", "marker", "envelope", "ink")


def _write(folder: Path, domain: str, generator: np.random.Generator, items: int, users: int) -> Path:
    """A domain whose 18,000 items have few different texts: the language model is not what is measured."""
    target = folder / domain
    target.mkdir(parents=True)
    texts = [f"{a} {b} for {domain}" for a in _WORDS for b in _WORDS]
    lines = [f"{domain}{n},{texts[n % len(texts)]},shop" for n in range(items)]
    (target / "items.csv").write_text("item_id,title,categories\n" + "\n".join(lines) + "\n")
    rows = []
    for user in range(users):
        name = f"both{user}" if user < users // 3 else f"{domain}{user}"
        chosen = generator.integers(0, items, size=min(4 + int(generator.geometric(0.18)), 30))
        rows += [f"{name},{domain}{item},{at}" for at, item in enumerate(chosen)]
    (target / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return target


@contextmanager
def _training_clock() -> Iterator[list[float]]:
    """Seconds of each call of `dp_sgd.train`; heads are not fitted at the end, which is no part of a round."""
    seconds: list[float] = []
    real: Callable[..., None] = local_round.train

    def timed(*args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        real(*args, **kwargs)
        seconds.append(time.perf_counter() - start)

    fit = delivery.deliver
    local_round.train, delivery.deliver = timed, lambda settings, question: wire.Ok()
    try:
        yield seconds
    finally:
        local_round.train, delivery.deliver = real, fit


def run(quick: bool = True) -> dict[str, float]:
    generator = np.random.default_rng(0)
    items, users, rounds = (3_000, 2_000, 4) if quick else (18_000, 9_500, 8)
    privacy = PrivacyConfig(rounds=rounds, steps_per_round=10, sampling_rate=0.1 if not quick else 0.25)
    # one thread: a second one waits for a core on a busy machine, which would slow training more than what is measured here
    config = solved(RunConfig(name="bench", privacy=privacy, compute=ComputeConfig(torch_threads=1)))
    scenario = dataclasses.replace(Scenario(), run=config, data=dataclasses.replace(Scenario().data, kind="folder", time="order"))
    with tempfile.TemporaryDirectory() as name:
        sources = {domain: _write(Path(name) / "data", domain, generator, items, users) for domain in ("arts", "office")}
        folder = RunFolder(Path(name) / "run").create(config)
        settings = settle(folder, scenario, sources, split_seed=0, ledgers=None)
        for one in settings:
            prepare(one, config)
        with _training_clock() as training:
            federate(config, folder, "in-process", build_client_app(functools.partial(one_of, settings)), clients=len(settings))
        lines = [json.loads(line) for line in folder.rounds.read_text().splitlines()]
    seconds = np.array([line["seconds"] for line in lines])
    trained = np.array(training).reshape(len(seconds), len(settings)).sum(axis=1)
    return {
        SHARE: float(np.median((seconds - trained) / seconds)),
        "outside local training, milliseconds a round and domain": float(np.median(seconds - trained)) / len(settings) * 1e3,
        "local training, milliseconds a step": float(np.median(trained)) / len(settings) / 10 * 1e3,
    }
