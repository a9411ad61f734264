"""Nothing that trains, releases or sends can see what was observed: the only way to it is the service, the recommender and erasure."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PRIVATE = ("client.live_profiles", "client.serving", "client.recommender.recommender", "client.recommender.people")


def imports_of(repository: Path, module: str) -> set[str]:
    """Modules of the house that a module imports, wherever in its text."""
    path = repository / (module.replace(".", "/") + ".py")
    if not path.is_file():
        path = repository / module.replace(".", "/") / "__init__.py"
    if not path.is_file():
        return set()
    found: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            start = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            whole = ".".join(filter(None, (start, node.module)))
            found |= {whole, *(f"{whole}.{name.name}" for name in node.names)}
    return {name for name in found if name.split(".")[0] in ("client", "shared")}


def reached(repository: Path, start: str) -> set[str]:
    seen, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports_of(repository, module)
    return seen


@pytest.mark.parametrize(
    "start", ["client.app", "client.rounds", "client.training.local_round", "client.releases", "client.passport_exchange"]
)
def test_what_leaves_or_trains_reaches_no_observation(repository: Path, start: str) -> None:
    found = reached(repository, start)

    assert len(found) > 10, "the walk itself is blind"
    assert not found & set(PRIVATE)


def test_the_walk_sees_the_ways_that_exist(repository: Path) -> None:
    assert "client.live_profiles" in reached(repository, "client.forgetting")
    assert set(PRIVATE) <= reached(repository, "client.commands.serve")
