"""`make bench` sets figures beside aims; a lost aim is an error, not a silence."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def bench(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_run", repository / "tests/bench/run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_run"] = module
    spec.loader.exec_module(module)
    return module


def test_a_figure_is_judged_by_the_side_its_aim_is_on(bench: ModuleType) -> None:
    figures = bench.judge("steps", {"ratio": 1.6, "speed-up": 1.2, "users": 10.0}, {"ratio": ("<=", 1.5), "speed-up": (">=", 1.0)})

    assert [figure.met for figure in figures] == [False, True, None]


def test_an_aim_without_its_figure_is_refused(bench: ModuleType) -> None:
    with pytest.raises(KeyError, match="renamed"):
        bench.judge("steps", {"ratio": 1.0}, {"renamed": ("<=", 1.5)})


def test_an_aim_with_a_strange_sign_is_refused(bench: ModuleType) -> None:
    with pytest.raises(ValueError, match="neither"):
        bench.judge("steps", {"ratio": 1.0}, {"ratio": ("<", 1.5)})
