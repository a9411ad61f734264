"""Non-interference in a whole client home: a run is delivered, its serving heads are fitted, and the next run must not know of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client import delivery, queries, rounds
from client.passport_exchange import own_keys
from client.serving_state import ServingFolder
from client.settings import AgreedRanges, CeilingSettings, ClientSettings, DataSettings
from client.state import StateFolder
from shared import wire
from shared.interest_space import InterestSpace, Moments, centroids
from shared.privacy.ledger import Ledger
from shared.transfer_layer import initial_arrays
from tests.client.training.tiny_partner import MODEL, D, config_of

pytestmark = pytest.mark.journey

CONFIG = config_of(rounds=3, steps_per_round=2)
WORDS = (
    "galaxy telescope comet",
    "soup pastry recipe",
    "harbour mast tide",
    "gambit rook endgame",
    "tulips compost lawn",
    "lava crater ash",
)


def shop(folder: Path) -> ClientSettings:
    """Forty items about six subjects, thirty users, and a ledger of a test build."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    items = [f"i{n},{WORDS[n % 6]} {n // 6},shelf {n % 6}" for n in range(40)]
    (folder / "items.csv").write_text("\n".join(["item_id,title,categories", *items]) + "\n")
    bought = [f"u{u},i{i},{1_500_000_000 + 1000 * u + n}" for u in range(30) for n, i in enumerate(generator.permutation(40)[:8])]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *bought]) + "\n")
    data = DataSettings(items=str(folder / "items.csv"), interactions=str(folder / "interactions.csv"))
    settings = ClientSettings(
        domain="arts",
        data=data,
        text_cache=str(folder / "texts"),
        ceiling=CeilingSettings(epsilon=1e4),
        agreed=AgreedRanges(max_sampling_rate=1.0, test_builds=True),
        base=folder,
    )
    settings.ledger_path.parent.mkdir(parents=True)
    said = {"domain": "arts", "ceiling_epsilon": 1e4, "delta": 1e-6, "set_by": "a test", "private": False}
    Ledger.create(settings.ledger_path, signer=own_keys(settings), **said).close()
    return settings


def run(settings: ClientSettings, run_id: str) -> wire.TransferUpdate:
    """One run of two rounds, from greeting to the last update."""
    queries.hello(settings, wire.Hello(run_id=run_id, config_toml=CONFIG.to_toml()))
    _, prepared = queries.opened(settings)
    space = InterestSpace.from_moments([Moments.of(prepared.text_vectors)], D)
    space = space.with_prototypes([centroids(space.project(prepared.text_vectors), 8, 0)], 8, 0)
    queries.descriptor(settings, wire.DescriptorQuery(mean=space.mean, basis=space.basis, scale=space.scale, prototypes=space.prototypes))
    layer = initial_arrays(MODEL, 7)
    for number in (1, 2):
        instruction = wire.RoundInstruction(run_id=run_id, round=number, config_hash=CONFIG.config_hash, arrays=layer)
        update = rounds.train(settings, instruction, bundle_digest="b" * 64, code_version="0")
        layer = update.arrays
    return update


def untouched(serving: Path) -> None:
    """What the others are compared with."""


def garbage(serving: Path) -> None:
    for path in sorted(serving.rglob("*")):
        if path.is_file():
            path.write_bytes(os.urandom(path.stat().st_size))


def deleted(serving: Path) -> None:
    shutil.rmtree(serving)


def test_a_second_run_after_delivery_is_the_same_bit_for_bit_whatever_lies_in_the_serving_folder(tmp_path: Path) -> None:
    first = shop(tmp_path / "shop")
    update = run(first, "run-1")
    delivery.deliver(first, wire.Deliver(run_id="run-1", round=2, arrays=update.arrays))
    serving = ServingFolder(first.at_home("serving")).current()
    assert serving is not None
    assert serving.arrays[f"head/{delivery.OWN}/log_counts"].any()  # exact popularity: what must not come back
    changes: tuple[Callable[[Path], None], ...] = (untouched, garbage, deleted)
    updates, states = [], []
    for change in changes:
        shutil.copytree(tmp_path / "shop" / "home", tmp_path / "shop" / change.__name__)
        again = dataclasses.replace(first, home=change.__name__)
        change(again.at_home("serving"))
        updates.append(run(again, "run-2"))
        state = StateFolder(again.at_home("state")).current()
        assert state is not None
        states.append({name: array.tobytes() for name, array in state.arrays.items()})
    assert updates[0].digest() == updates[1].digest() == updates[2].digest()
    assert states[0] == states[1] == states[2]


def test_training_does_not_open_a_file_of_the_serving_folder(tmp_path: Path) -> None:
    settings = shop(tmp_path / "shop")
    update = run(settings, "run-1")
    delivery.deliver(settings, wire.Deliver(run_id="run-1", round=2, arrays=update.arrays))
    opened: list[str] = []
    listen(opened)
    run(settings, "run-2")
    touched = [path for path in opened if "/home/" in path]
    assert any("/state" in path for path in touched)  # the ear hears
    assert not [path for path in touched if "/serving" in path]


def listen(opened: list[str]) -> None:
    """Every file that Python opens from here on; an audit hook cannot be taken off again, so it only listens."""

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, os.PathLike)):
            opened.append(os.fspath(arguments[0]))

    sys.addaudithook(hear)
