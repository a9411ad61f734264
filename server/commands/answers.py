"""What the commands share: the types of their arguments, the words for their exit codes, and how an answer is printed.

Heavy libraries are imported inside the functions: ``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..home import Home

EXIT_WORDS = {
    0: "done",
    1: "unexpected error (a log is named)",
    2: "wrong usage",
    3: "settings, keys or certificates",
    4: "a card or a bundle",
    5: "no such run",
    6: "storage",
    11: "no noise reaches the target",
    16: "the run cannot go on",
    23: "receipts that cannot be used",
    130: "interrupted",
}


def epilog(*codes: int) -> str:
    """The last line of a help page: the exit codes a command may end with, in words."""
    return "Exit codes: " + ", ".join(f"{code} {EXIT_WORDS[code]}" for code in codes) + "."


EPILOG = epilog(*EXIT_WORDS)
"""Every exit code of `isthmus-server`."""

HomeFolder = Annotated[Path, typer.Argument(help="The coordinator's home.", metavar="HOME")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output; all else goes to standard error.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")]


def open_home(folder: Path) -> Home:
    """The home that a command was given; what needs somebody soon is said on standard error.

    Raises:
        ConfigError: it is none, is half made, or a key is open to others.
    """
    from ..home import Home

    home = Home.open(folder)
    warn(home.warnings())
    return home


def warn(lines: Iterable[str]) -> None:
    """Lines for people, whatever form the answer has."""
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def answer(as_json: bool, document: Mapping[str, Any], words: str) -> None:
    """Prints the one answer of a command: a document for machines, or words for people."""
    if as_json:
        print_document(document)
    else:
        print(words)


def print_document(document: Mapping[str, Any]) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=1))
