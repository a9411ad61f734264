"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.errors import UsageError

Engine = Annotated[str, typer.Option(help="in-process (exact, default) or ray (parallel, many clients).", metavar="in-process|ray")]
Data = Annotated[Path | None, typer.Option(help="Folder of the data sets.", envvar="ISTHMUS_DATA", metavar="DIR")]
Out = Annotated[Path, typer.Option(help="Folder in which run folders are made.", metavar="DIR")]
Override = Annotated[
    list[str] | None, typer.Option("--set", help="Set a configuration key, e.g. privacy.rounds=20; may be repeated.", metavar="KEY=VALUE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output; all else goes to standard error.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables; only the name of the folder.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")]


def parts(text: str, option: str) -> list[str]:
    """Texts between commas. Raises `UsageError` where there is none."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise UsageError(f"{option} is empty", do=f"Name at least one, as in {option} 8,2.")
    return list(dict.fromkeys(found))


def epsilon_from(text: str) -> float:
    from .compare_runs import epsilon_of

    try:
        return epsilon_of(text)
    except ValueError:
        raise UsageError("epsilon is neither a positive number nor 'none'", do="For example --epsilon 8.") from None


def seed_from(text: str) -> int:
    if not text.isdecimal():
        raise UsageError("a seed is not a whole number of at least 0", do="For example --seeds 0,1,2.")
    return int(text)


def engine_from(name: str) -> str:
    if name not in ("in-process", "ray"):
        raise UsageError(f"there is no engine '{name}'", do="Engines: in-process, ray.")
    return name


def overrides_from(pairs: Sequence[str] | None) -> dict[str, Any]:
    """``key=value`` pairs; a value is read as TOML, and as a text where it is none."""
    found: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {pair} is not KEY=VALUE", do="For example --set privacy.rounds=20.")
        found[key.strip()] = value_from(text)
    return found


def value_from(text: str) -> Any:
    """
    >>> value_from("20"), value_from("maml")
    (20, 'maml')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def varied_from(pairs: Sequence[str] | None) -> dict[str, list[Any]]:
    """``key=value,value`` pairs: the values that a key takes in turn."""
    found: dict[str, list[Any]] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key.strip() or not text.strip():
            raise UsageError(f"--vary {pair} is not KEY=VALUE,VALUE", do="For example --vary model.rank=4,8,16.")
        found[key.strip()] = [value_from(part) for part in parts(text, "--vary")]
    return found
