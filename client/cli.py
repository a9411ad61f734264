"""isthmus-client: a partner's own commands, on its own machines. Each group of commands is a module of `client.commands`.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

import typer

from shared.console import error_record, guarded

from .commands.answers import EPILOG, print_document
from .commands.passports import passport

app = typer.Typer(
    help="One domain's private side: what a partner does with its own data, on its own machines.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(passport, name="passport")
for name in ("ledger", "release"):
    if importlib.util.find_spec(f"client.commands.{name}"):
        app.add_typer(getattr(importlib.import_module(f"client.commands.{name}"), name), name=name)
for name in ("forget", "canary"):
    if importlib.util.find_spec(f"client.commands.{name}"):
        app.command(name)(getattr(importlib.import_module(f"client.commands.{name}"), name))


@app.callback()
def _isthmus_client() -> None:
    """One domain's private side: what a partner does with its own data, on its own machines."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and leaves with its exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    code = guarded(
        lambda: command.main(args=given, prog_name="isthmus-client", standalone_mode=False),
        debug="--debug" in given,
        on_error=(lambda error, code: print_document(error_record(error, code))) if "--json" in given else None,
    )
    sys.exit(code)


if __name__ == "__main__":
    main()
