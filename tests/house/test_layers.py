"""Imports go down only; `make check` runs lint-imports, and here each contract is shown to bite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def test_the_house_keeps_its_own_layers(clean_clone: Path, command: Callable) -> None:
    done = command("lint-imports", "--no-cache", cwd=clean_clone)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "planted", "contract"),
    [
        ("shared/errors.py", "import server", "Imports go down only"),
        ("client/__init__.py", "import server", "client and server never import one another"),
        ("server/__init__.py", "import client", "client and server never import one another"),
        ("client/__init__.py", "import simulations", "Imports go down only"),
        ("shared/privacy/__init__.py", "import client", "The ledger and the accountants stand on shared alone"),
        ("client/training/__init__.py", "import client.serving_state", "What is trained or released cannot open the serving folder"),
    ],
)
def test_a_planted_upward_import_is_caught(clean_clone: Path, command: Callable, module: str, planted: str, contract: str) -> None:
    with (clean_clone / module).open("a") as file:
        file.write(f"\n{planted}\n")

    done = command("lint-imports", "--no-cache", cwd=clean_clone)

    assert done.returncode != 0
    broken = [line for line in done.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(contract in line for line in broken), done.stdout


def test_training_cannot_reach_the_serving_folder_through_another_module(clean_clone: Path, command: Callable) -> None:
    (clean_clone / "client/innocent.py").write_text("from client import serving_state\n")
    with (clean_clone / "client/training/__init__.py").open("a") as file:
        file.write("\nfrom client import innocent\n")

    done = command("lint-imports", "--no-cache", cwd=clean_clone)

    assert done.returncode != 0
    assert "What is trained or released cannot open the serving folder BROKEN" in done.stdout
