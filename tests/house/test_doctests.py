"""Examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROOMS = ("client", "server", "shared", "simulations")


def modules_with_examples() -> list[str]:
    files = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py") if ">>> " in file.read_text())
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)

    assert result.attempted > 0
    assert result.failed == 0


def test_the_ranking_metrics_have_examples() -> None:
    assert "shared.ranking" in modules_with_examples()
