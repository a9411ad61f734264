"""What the tests of the repository itself read."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOMS = ("client", "server", "shared", "simulations")


@pytest.fixture(scope="session")
def tracked(repository: Path) -> list[Path]:
    """Every file of the repository, relative to its root; the newest text of each is the one on disk."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, check=True, capture_output=True, text=True).stdout
    files = [Path(name) for name in listed.split("\0") if name and (repository / name).exists()]
    assert files, "git lists no file: is this a clone?"
    return files


@pytest.fixture(scope="session")
def project(repository: Path) -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((repository / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


@pytest.fixture
def clean_clone(repository: Path, tracked: list[Path], tmp_path: Path) -> Path:
    """A copy of the tracked files and nothing else, as a clone would hold them."""
    clone = tmp_path / "isthmus"
    for file in tracked:
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        (clone / file).write_bytes((repository / file).read_bytes())
    return clone


@pytest.fixture
def command(repository: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program with the tests' own interpreter's scripts first on the path."""

    def run(*words: str, cwd: Path = repository) -> subprocess.CompletedProcess[str]:
        import sys

        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return subprocess.run(words, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=600)

    return run
