"""What the commands share: the types of their arguments, the words for their exit codes, and how an answer is printed.

Heavy libraries are imported inside the functions: ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..settings import ClientSettings

EXIT_WORDS = {
    0: "done",
    1: "unexpected error (a log is named)",
    2: "wrong usage",
    3: "settings",
    4: "data file",
    6: "storage",
    7: "the ledger does not allow it",
    8: "another process holds the ledger",
    9: "broken ledger",
    10: "budget used up",
    11: "no noise reaches the target",
    12: "passport or key",
    17: "no run, or no interest space yet",
    18: "no ledger of isthmus",
    19: "empty ledger",
    20: "ledger of a newer format",
    21: "event of unknown kind",
    22: "ledger older than what was confirmed",
    23: "evidence that cannot be used",
    24: "not the key of this ledger",
    25: "receipts of another partner",
    35: "a check refuted the code",
    36: "not ready: a line of the check is red",
    130: "interrupted",
}


def epilog(*codes: int) -> str:
    """The last line of a help page: the exit codes a command may end with, in words."""
    return "Exit codes: " + ", ".join(f"{code} {EXIT_WORDS[code]}" for code in codes) + "."


EPILOG = epilog(*EXIT_WORDS)
"""Every exit code of `isthmus-client`."""

Settings = Annotated[Path, typer.Argument(help="Settings of this domain.", metavar="PARTNER_TOML")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output; all else goes to standard error.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")]


def read_settings(path: Path) -> ClientSettings:
    """The settings that a command was given.

    Raises:
        ConfigError: naming the key that is unknown or out of range.
    """
    from ..settings import ClientSettings

    return ClientSettings.read(path)


@contextlib.contextmanager
def libraries_on_stderr() -> Iterator[None]:
    """Standard output is kept for the answer, whatever a library prints while it works."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def progress() -> Callable[[int, int], None] | None:
    """A line that counts the texts of the catalogue, where somebody watches."""
    if not sys.stderr.isatty():
        return None
    return lambda done, total: print(f"\rreading texts: {done:,} of {total:,}", end="\n" if done >= total else "", file=sys.stderr)


def answer(as_json: bool, document: Mapping[str, Any], words: str) -> None:
    """Prints the one answer of a command: a document for machines, or words for people."""
    if as_json:
        print_document(document)
    else:
        print(words)


def print_document(document: Mapping[str, Any]) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=1))


def day(seconds: int) -> str:
    """A day in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
