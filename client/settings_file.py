"""``partner.toml`` as a person finds it: every key with a comment that says what it means, made from the settings' own words.

Once it is written, the file is the partner's. The one thing that is filled in later are keys of ``[server]`` that were left empty, each in
its own line; all else stays as the partner wrote it, to the letter.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from shared.commented_toml import commented
from shared.config import build
from shared.errors import ConfigError, UsageError

from .durable_files import write_file
from .settings import OPENING, BenchmarkSettings, ClientSettings

HEAD = f"{OPENING} They stay here: nothing of them is sent but what PARTNER.json shows. Paths are relative to this file."


def written(settings: ClientSettings) -> str:
    """All settings as TOML with comments; reading it back gives an equal record. What is for benchmarks only is left out where unset."""
    return commented(settings, HEAD, leave_out={"benchmark"} if settings.benchmark == BenchmarkSettings() else ())


def settings_from(base: Path, values: Mapping[str, Any], changes: Mapping[str, Any]) -> ClientSettings:
    """Settings made of keys, with defaults for all others.

    Args:
        base: folder of the file.
        values: plain values at the top.
        changes: dotted key -> plain value.
    Raises:
        ConfigError: naming the key that is unknown or out of range.
    """
    tree: dict[str, Any] = dict(values)
    for key, value in changes.items():
        table, _, last = key.rpartition(".")
        place = tree.setdefault(table, {}) if table else tree
        if not isinstance(place, dict):
            raise ConfigError(f"unknown key '{key}'")
        place[last] = value
    settings: ClientSettings = build(ClientSettings, tree, "")
    return dataclasses.replace(settings, base=base)


def plain_value(text: str) -> Any:
    """A value as TOML spells it; whatever is no TOML is a text.

    >>> plain_value("8.0"), plain_value("true"), plain_value("films.csv"), plain_value("3")
    (8.0, True, 'films.csv', 3)
    """
    try:
        return tomllib.loads(f"value = {text}\n")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text


def fill_in(path: Path, table: str, values: Mapping[str, str]) -> bool:
    """Fills in keys of a table that were left empty. Whether there was anything to do.

    Raises:
        UsageError: a key says something else already, or the file is written in a way that has no place for it.
        StorageError: it cannot be written; it stays as it was.
    """
    before = ClientSettings.read(path)
    there = getattr(before, table)
    wanted = {name: value for name, value in values.items() if getattr(there, name) != value}
    for name in wanted:
        if getattr(there, name):
            raise UsageError(
                f"{path.name} says another '{table}.{name}' already",
                do="Compare with the coordinator which one is right; to follow the new one, empty that key and try again.",
            )
    if not wanted:
        return False
    text = path.read_text(encoding="utf-8")
    for name, value in wanted.items():
        text = _with(text, table, name, value)
    _replace(path, text, dataclasses.replace(before, **{table: dataclasses.replace(there, **wanted)}), wanted)
    return True


def _with(text: str, table: str, name: str, value: str) -> str:
    """The text with one key of one table set: in its own line, else below the table's heading, else in a new table at the end."""
    line = tomli_w.dumps({name: value}).rstrip("\n")
    heading = re.search(rf"^[ \t]*\[[ \t]*{table}[ \t]*\][ \t]*(#.*)?$", text, re.MULTILINE)
    if heading is None:
        return f"{text.rstrip()}\n\n[{table}]\n{line}\n"
    following = re.compile(r"^[ \t]*\[", re.MULTILINE).search(text, heading.end())
    end = following.start() if following else len(text)
    own = re.compile(rf"^[ \t]*{name}[ \t]*=[ \t]*(\"\"|'')", re.MULTILINE).search(text, heading.end(), end)
    if own is None:
        return f"{text[: heading.end()]}\n{line}{text[heading.end() :]}"
    return text[: own.start()] + line + text[own.end() :]


def _replace(path: Path, text: str, wanted: ClientSettings, keys: Mapping[str, str]) -> None:
    """Writes the text if it means exactly what is wanted."""
    try:
        meant = build(ClientSettings, tomllib.loads(text), "")
    except (tomllib.TOMLDecodeError, ConfigError):
        meant = None
    if meant != wanted:
        by_hand = "\n".join(f"    {line}" for line in tomli_w.dumps(keys).splitlines())
        raise UsageError(f"{path.name} is written in a way that leaves no place to fill in", do=f"Write into [server] by hand:\n{by_hand}")
    write_file(path, text.encode())
