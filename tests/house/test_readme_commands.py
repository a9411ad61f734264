"""Snippets of the README can be typed, and no command hides from it."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from simulations.scenario_config import load

SHELL = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:make|isthmus-\w+)(?: [^`]*)?)`")
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


def typed(page: str) -> list[list[str]]:
    """Every `make ...` and `isthmus-* ...` that a page shows, as words; comments, and the `&` of what stays up, are dropped."""
    shown = [line for block in SHELL.findall(page) for line in block.splitlines()] + INLINE.findall(page)
    words = [shlex.split(line.removesuffix(" &"), comments=True) for line in shown]
    return [line for line in words if line and (line[0] == "make" or line[0].startswith("isthmus-"))]


def app_of(entry: str) -> typer.Typer:
    """The Typer application behind a `module:function` entry point."""
    module = importlib.import_module(entry.partition(":")[0])
    app = getattr(module, "app", None)
    assert isinstance(app, typer.Typer), f"{module.__name__} has no Typer application named 'app'"
    return app


def tree(name: str, command: Any, *, hidden: bool) -> Iterator[tuple[str, Any]]:
    """(full name, command) of every command below one, groups left out."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for word, inner in below.items():
        if hidden or not inner.hidden:
            yield from tree(f"{name} {word}", inner, hidden=hidden)


def all_commands(project: dict[str, Any], *, hidden: bool = False) -> dict[str, Any]:
    """Every command by its full name. A hidden one is not announced yet, but a page may show it where it can be read."""
    roots = {name: typer.main.get_command(app_of(entry)) for name, entry in project["project"]["scripts"].items()}
    return {full: command for name, root in roots.items() for full, command in tree(name, root, hidden=hidden)}


def parse(words: list[str], commands: dict[str, Any]) -> None:
    """Reads a line as its command would, without running it; a bare name only has to exist."""
    full = max((name for name in commands if words[: len(name.split())] == name.split()), key=len, default="")
    assert full, f"no such command: {' '.join(words)}"
    if words != full.split():
        commands[full].make_context(full, words[len(full.split()) :]).close()


def test_every_make_target_of_the_readme_exists_and_every_target_is_in_the_readme(repository: Path, readme: str) -> None:
    targets = set(TARGET.findall((repository / "Makefile").read_text()))
    shown = {words[1] for words in typed(readme) if words[0] == "make" and len(words) > 1}

    assert shown == targets - {"help"}


def test_every_command_line_of_every_page_can_be_parsed(repository: Path, tracked: list[Path], project: dict[str, Any]) -> None:
    commands = all_commands(project, hidden=True)
    pages = {file: (repository / file).read_text() for file in tracked if file.suffix == ".md" and file.name != "CHANGELOG.md"}
    lines = [words for page in pages.values() for words in typed(page) if words[0] != "make" and len(words) > 1]
    complete = [words for words in lines if not any("[" in word or word == "..." for word in words)]

    assert len(complete) >= 6
    for words in complete:
        try:
            parse(words, commands)
        except click.ClickException as error:
            pytest.fail(f"{' '.join(words)}: {error.format_message()}")


def test_a_misspelt_option_in_a_page_would_turn_this_red(project: dict[str, Any]) -> None:
    with pytest.raises(click.ClickException):
        parse(["isthmus-simulate", "run", "demo", "--epsilno", "2"], all_commands(project))


def test_every_command_is_in_the_readme(readme: str, project: dict[str, Any]) -> None:
    shown = [" ".join(words) for words in typed(readme)]
    hidden = [name for name in all_commands(project) if not any(line == name or line.startswith(name + " ") for line in shown)]
    assert hidden == []


def test_every_help_page_runs_and_shows_an_example(project: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    for full in all_commands(project):
        script, *words = full.split()
        result = CliRunner().invoke(app_of(project["project"]["scripts"][script]), [*words, "--help"], prog_name=script)

        assert result.exit_code == 0, f"{full}: {result.output}"
        assert f"{full} " in re.sub(r"Usage: .*", "", result.output), f"the help page of '{full}' has no example"


def test_ci_runs_make_check_and_the_test_command_of_the_readme(repository: Path) -> None:
    script = (repository / ".ci/run").read_text()

    assert re.findall(r"^(make [a-z-]+)", script, re.MULTILINE) == ["make check", "make test"]
    assert (repository / ".ci/run").stat().st_mode & 0o111, ".ci/run cannot be executed"


def test_the_scenario_of_the_readme_is_one_that_can_be_loaded(readme: str, tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```toml\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_shops.toml").write_text(shown)

    scenario = load(str(tmp_path / "my_shops.toml"))

    assert scenario.data.set == "my_shops"
    assert scenario.run.privacy.noise_multiplier > 0.0
