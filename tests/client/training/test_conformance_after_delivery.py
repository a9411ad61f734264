"""Non-interference in a whole client home: a run is delivered, its serving heads are fitted, and the next run must not know of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client import delivery
from client.canary.interference import deleted, garbage, home_config, home_of, run_of, untouched
from client.serving_state import ServingFolder
from client.state import StateFolder
from shared import wire
from tests.client.training.tiny_partner import config_of

pytestmark = pytest.mark.journey

CONFIG = home_config(config_of(rounds=3, steps_per_round=2))


def test_a_second_run_after_delivery_is_the_same_bit_for_bit_whatever_lies_in_the_serving_folder(tmp_path: Path) -> None:
    first = home_of(tmp_path / "shop", CONFIG)
    update = run_of(first, CONFIG, "run-1")
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
        updates.append(run_of(again, CONFIG, "run-2"))
        state = StateFolder(again.at_home("state")).current()
        assert state is not None
        states.append({name: array.tobytes() for name, array in state.arrays.items()})
    assert updates[0].digest() == updates[1].digest() == updates[2].digest()
    assert states[0] == states[1] == states[2]


def test_training_does_not_open_a_file_of_the_serving_folder(tmp_path: Path) -> None:
    settings = home_of(tmp_path / "shop", CONFIG)
    update = run_of(settings, CONFIG, "run-1")
    delivery.deliver(settings, wire.Deliver(run_id="run-1", round=2, arrays=update.arrays))
    opened: list[str] = []
    listen(opened)
    run_of(settings, CONFIG, "run-2")
    home = str(settings.at_home("."))
    touched = [path for path in opened if path.startswith(home)]
    assert any("/state" in path for path in touched)  # the ear hears
    assert not [path for path in touched if "/serving" in path]


def listen(opened: list[str]) -> None:
    """Every file that Python opens from here on; an audit hook cannot be taken off again, so it only listens."""

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, os.PathLike)):
            opened.append(os.fspath(arguments[0]))

    sys.addaudithook(hear)
