"""What a help page says about each word that a command takes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import click
import pytest
from typer.core import TyperArgument

from shared.console import command_of

WIDE = "240"


def all_below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            yield from all_below(f"{name} {word}", inner)
    else:
        yield name, command


def test_every_argument_is_explained_where_people_look(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", WIDE)
    monkeypatch.setenv("NO_COLOR", "1")
    explained = 0
    for script, entry in project["project"]["scripts"].items():
        module = importlib.import_module(entry.partition(":")[0])
        for full, command in all_below(script, command_of(module.app)):
            arguments = [one for one in command.params if isinstance(one, TyperArgument)]
            with pytest.raises(SystemExit) as ended:
                module.main([*full.split()[1:], "--help"])
            page = capsys.readouterr().out
            assert ended.value.code == 0
            for argument in arguments:
                assert argument.help, f"{full}: nothing is said about {argument.name}"
                assert argument.help in page, f"{full}: the page does not say what {argument.name} is"
                explained += 1
    assert explained > 40
