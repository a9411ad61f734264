"""pyproject.toml says what is there, and what is there is in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOMS = ("client", "server", "shared", "simulations")


def test_every_package_is_listed_and_every_listed_package_exists(project: dict[str, Any], tracked: list[Path]) -> None:
    folders = {".".join(file.parts[:-1]) for file in tracked if file.suffix == ".py" and file.parts[0] in ROOMS}
    with_init = {".".join(file.parts[:-1]) for file in tracked if file.name == "__init__.py" and file.parts[0] in ROOMS}

    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(folders)
    assert folders == with_init, "a folder of modules without __init__.py"


def test_every_file_of_a_room_that_is_not_code_is_declared_as_package_data(project: dict[str, Any], tracked: list[Path]) -> None:
    data = project["tool"]["setuptools"]["package-data"]
    pages = (".md", ".proto", ".svg")  # for people who read the repository: nothing opens them when the program runs
    rooms = [file for file in tracked if file.parts[0] in ROOMS and file.parts[1] != "deploy"]  # a kit is taken from a checkout
    others = [file for file in rooms if file.suffix not in (".py", *pages)]
    undeclared = [
        str(file) for file in others if not any(PurePosixPath(*file.parts[1:]).match(pattern) for pattern in data.get(file.parts[0], []))
    ]
    assert undeclared == []


def test_the_apps_ship_no_package_data_because_a_bundle_holds_code_only(project: dict[str, Any]) -> None:
    data = project["tool"]["setuptools"]["package-data"]
    assert set(data) <= {"simulations", "shared"}
    assert data["shared"] == ["privacy/*.j2"]  # the officer's page: isthmus-audit draws it, no app reads it


def test_no_index_takes_this_distribution_by_mistake(project: dict[str, Any]) -> None:
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]


def test_every_requirement_is_pinned_and_each_pin_fits_its_range(project: dict[str, Any], repository: Path) -> None:
    lines = [line for line in (repository / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == [], (
        "only name==version, no local build"
    )
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    tables = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]

    misfits = [
        str(requirement)
        for requirement in (Requirement(text) for table in tables for text in table)
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), ""), prereleases=True)
    ]

    assert misfits == []


def test_the_flower_configuration_has_the_one_key_run(project: dict[str, Any]) -> None:
    assert project["tool"]["flwr"]["app"]["config"] == {"run": ""}


def test_folder_patterns_of_gitignore_are_anchored_because_bundles_honour_them(repository: Path) -> None:
    lines = [line for line in (repository / ".gitignore").read_text().splitlines() if line and not line.startswith("#")]
    loose = [line for line in lines if not line.startswith("/") and "*" not in line and line != "__pycache__/"]
    assert loose == []
