"""T5: nothing besides the DP optimiser influences a release: no serving folder, no earlier run, no update of another kind.

The first check drives a whole client home, from the greeting through rounds and delivery to the rounds of a second run, because what must
not come back (a head fitted on exact data, exact popularity) is made by the end of a run.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client import delivery, queries, rounds
from client.key_rotation import own_keys
from client.settings import AgreedRanges, CeilingSettings, ClientSettings, DataSettings
from client.state import StateFolder
from client.training import local_round
from shared import wire
from shared.config import RunConfig
from shared.interest_space import InterestSpace, Moments, centroids
from shared.privacy.conformance import Check
from shared.privacy.ledger import Ledger
from shared.transfer_layer import initial_arrays, shared_shapes

if TYPE_CHECKING:
    from .conformance import Bench

_DIMENSION, _ITEMS, _USERS = 16, 40, 30
_WORDS = (
    "galaxy telescope comet",
    "soup pastry recipe",
    "harbour mast tide",
    "gambit rook endgame",
    "tulips compost lawn",
    "lava crater ash",
)
_ADAM_EPSILON = 1e-8


def nothing_else_is_read(bench: Bench) -> list[Check]:
    """T5: the serving folder, the state of the last run, and whatever is not the noisy sum."""
    return [*_serving_folder(bench), *_new_run(bench), *_parameters(bench)]


# --- a whole home ---


def home_config(config: RunConfig) -> RunConfig:
    """The configuration of the whole home: as small as its catalogue of invented titles."""
    model = dataclasses.replace(
        config.model,
        dimension=min(config.model.dimension, _DIMENSION),
        rank=min(config.model.rank, 4),
        descriptor_dimension=min(config.model.descriptor_dimension, 4),
        prototypes=min(config.model.prototypes, 8),
    )
    return dataclasses.replace(config, model=model)


def home_of(folder: Path, config: RunConfig) -> ClientSettings:
    """A partner with forty items about six subjects, thirty users, and a ledger of a test build."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    items = [f"i{n},{_WORDS[n % 6]} {n // 6},shelf {n % 6}" for n in range(_ITEMS)]
    (folder / "items.csv").write_text("\n".join(["item_id,title,categories", *items]) + "\n")
    bought = [f"u{u},i{i},{1_500_000_000 + 1000 * u + n}" for u in range(_USERS) for n, i in enumerate(generator.permutation(_ITEMS)[:8])]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *bought]) + "\n")
    delta = config.privacy.delta
    settings = ClientSettings(
        domain="arts",
        data=DataSettings(items=str(folder / "items.csv"), interactions=str(folder / "interactions.csv")),
        text_cache=str(folder / "texts"),
        ceiling=CeilingSettings(epsilon=1e4, delta=delta),
        agreed=AgreedRanges.widest(test_builds=True),
        base=folder,
    )
    settings.ledger_path.parent.mkdir(parents=True)
    keys = own_keys(settings)
    Ledger.create(
        settings.ledger_path, signer=keys, domain="arts", ceiling_epsilon=1e4, delta=delta, set_by="a check", private=False
    ).close()
    return settings


def run_of(settings: ClientSettings, config: RunConfig, run_id: str) -> wire.TransferUpdate:
    """One run of two rounds, from greeting to the last update."""
    queries.hello(settings, wire.Hello(run_id=run_id, config_toml=config.to_toml()))
    _, prepared = queries.opened(settings)
    model = config.model
    space = InterestSpace.from_moments([Moments.of(prepared.text_vectors)], model.dimension)
    space = space.with_prototypes([centroids(space.project(prepared.text_vectors), model.prototypes, 0)], model.prototypes, 0)
    queries.descriptor(settings, wire.DescriptorQuery(mean=space.mean, basis=space.basis, scale=space.scale, prototypes=space.prototypes))
    layer = initial_arrays(model, 7)
    for number in (1, 2):
        instruction = wire.RoundInstruction(run_id=run_id, round=number, config_hash=config.config_hash, arrays=layer)
        update = rounds.train(settings, instruction, bundle_digest="b" * 64, code_version="0")
        layer = update.arrays
    return update


def untouched(serving: Path) -> None:
    """What the others are compared with."""


def garbage(serving: Path) -> None:
    """Every file there keeps its name and size, and nothing else."""
    for path in sorted(serving.rglob("*")):
        if path.is_file():
            path.write_bytes(os.urandom(path.stat().st_size))


def deleted(serving: Path) -> None:
    """As on a machine where nothing was ever delivered."""
    shutil.rmtree(serving)


def _serving_folder(bench: Bench) -> list[Check]:
    config = home_config(bench.coupled)
    first = home_of(bench.workspace / "t5-home", config)
    update = run_of(first, config, "run-1")
    delivery.deliver(first, wire.Deliver(run_id="run-1", round=2, arrays=update.arrays))
    changes: tuple[Callable[[Path], None], ...] = (untouched, garbage, deleted)
    left = []
    for change in changes:
        shutil.copytree(first.at_home(""), first.base / change.__name__)
        again = dataclasses.replace(first, home=change.__name__)
        change(again.at_home("serving"))
        left.append((run_of(again, config, "run-2").digest(), _bytes_of(StateFolder(again.at_home("state")))))
    faults = sum(one != left[0] for one in left[1:])
    what = "second runs that change when the serving folder (head fitted on exact data, exact popularity) is scrambled or removed"
    return [Check.of_fact("T5 serving folder", what, faults)]


def _bytes_of(folder: StateFolder) -> dict[str, bytes]:
    state = folder.current()
    return {} if state is None else {name: array.tobytes() for name, array in state.arrays.items()}


# --- one domain's rounds ---


def _new_run(bench: Bench) -> list[Check]:
    crowd = bench.people(24)
    used = bench.partner("t5-used", bench.coupled, bench.people(30, seed=8))
    used.update(1)
    used = dataclasses.replace(used.another_run("run-2"), data=crowd.data("arts", bench.config.model.descriptor_dimension))
    fresh = dataclasses.replace(bench.partner("t5-fresh", bench.coupled, crowd), run_id="run-2")
    used.update(1)
    fresh.update(1)
    differ = _bytes_of(StateFolder(used.home / "state")) != _bytes_of(StateFolder(fresh.home / "state"))
    return [Check.of_fact("T5 new run", "new runs that remember what the run before learned", int(differ))]


def _parameters(bench: Bench) -> list[Check]:
    """Adam's steps, done by hand from the noisy sums alone, give the very parameters and moments: no other update."""
    config = bench.coupled
    partner = bench.partner("t5-parameters", config, bench.people(24))
    model = local_round.initial_model(config, "arts")
    model.load_shared(partner.layer)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    start = {name: parameter.detach().numpy().astype(np.float64) for name, parameter in trained.items()}
    sums = partner.sums(1)
    update = partner.update(1)  # answered from the state
    state = partner.state
    assert state is not None, "a round left no state"
    rate, worst = config.training.learning_rate, 0.0
    ends = np.cumsum([before.size for before in start.values()])
    gradients = np.split(sums / config.privacy.expected_batch_users, ends[:-1], axis=1)  # (steps, p_k) each
    for (name, before), gradient in zip(start.items(), gradients, strict=True):
        after, first = _adam(before, gradient.reshape(-1, *before.shape), rate)
        error = np.abs(state.arrays[f"model/{name}"] - after) / (rate + np.abs(before) * 1e-3)
        moved = np.abs(state.arrays[f"adam/first/{name}"] - first) / np.abs(gradient).max()
        for one in (error, moved):
            worst = max(worst, float(one.max()) if np.isfinite(one).all() else float("inf"))
    kept = {f"{kind}/{name}" for kind in ("model", "adam/first", "adam/second") for name in start} | {"adam/steps"}
    sent = {name: array.tobytes() for name, array in update.arrays.items()}
    shared = {name: state.arrays[f"model/{name}.weight"].tobytes() for name in shared_shapes(config.model)}
    return [
        Check.of_size("T5 parameters", "how far parameters are from what the noisy sum alone makes of them, in steps", worst, 1e-3),
        Check.of_fact("T5 state", "arrays that are kept or sent and are not part of the joint vector", len(set(state.arrays) ^ kept)),
        Check.of_fact("T5 reply", "arrays sent that are not the trained shared ones", int(sent != shared)),
    ]


def _adam(start: np.ndarray, gradients: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and first moments after these steps (Kingma & Ba 2015, algorithm 1)."""
    after, first, second = start, np.zeros_like(start), np.zeros_like(start)
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        after = after - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + _ADAM_EPSILON)
    return after, first
