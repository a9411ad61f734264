"""What a command says when it ends: an exit code, a message that says what to do next, and never a traceback unless one was asked for."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
import typing
from collections.abc import Callable, Iterator
from typing import Any

import click
import typer

from .errors import IsthmusError, StorageError

INTERRUPTED = 130


def command_of(app: typer.Typer) -> click.Command:
    """The command of an app, with the help of its arguments.

    Click knows the help of an argument itself from 8.5 on, and clears what typer 0.20, the newest that Flower 1.41 admits, had set just
    before. So it is taken from the signatures once more.
    """
    root = typer.main.get_command(app)
    for command in _all(root):
        hints = typing.get_type_hints(command.callback, include_extras=True) if command.callback is not None else {}
        for parameter in command.params:
            if isinstance(parameter, typer.core.TyperArgument) and not parameter.help:
                said = typing.get_args(hints.get(parameter.name or ""))[1:]
                parameter.help = next((one.help for one in said if isinstance(one, typer.models.ArgumentInfo)), None)
    return root


def _all(command: click.Command) -> Iterator[click.Command]:
    """A command, and all below it."""
    yield command
    if isinstance(command, click.Group):
        for one in command.commands.values():
            yield from _all(one)


def guarded(work: Callable[[], Any], *, debug: bool, on_error: Callable[[BaseException, int], None] | None = None) -> int:
    """Does ``work`` and turns whatever happens into an exit code and a message on standard error.

    Args:
        work: a command; what it returns is the exit code where it is a number.
        debug: show the traceback of an unexpected error.
        on_error: told the error and its code, after the message.
    """
    try:
        result = work()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BaseException as error:
        code = _explain(error, debug=debug)
        if on_error is not None and not isinstance(error, (BrokenPipeError, SystemExit)):
            on_error(error, code)
        return code


def error_record(error: BaseException, code: int) -> dict[str, Any]:
    """An error for machines: its kind and exit code, and of errors meant to be read the text."""
    known = isinstance(error, IsthmusError)
    text = {"what": error.what, "do": error.do} if known else {"what": type(error).__name__, "do": ""}  # type: ignore[attr-defined]
    return {"error": {"kind": type(error).__name__, "exit_code": code, **text}}


def _explain(error: BaseException, *, debug: bool) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, click.ClickException):
        error.show(sys.stderr)
        return error.exit_code
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read the output has gone; the interpreter's last flush must not fail
        return 0
    if isinstance(error, OSError):
        error = _storage(error)
    if isinstance(error, IsthmusError):
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    text = "".join(traceback.format_exception(error))
    if debug:
        print(text, file=sys.stderr)
    print(f"Unexpected {type(error).__name__}. This is a fault of isthmus, not yours.{_log(text)}", file=sys.stderr)
    return 1


def _storage(error: OSError) -> StorageError:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{where}no space left", do="Make room, then try again.")
    return StorageError(f"{where}{error.strerror or 'cannot be used'}", do="Check the path and its permissions.")


def _log(text: str) -> str:
    """Keeps a traceback in a file of its own, readable by its owner only; what to say about it."""
    try:
        handle, path = tempfile.mkstemp(prefix="isthmus-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return "\n  Call it again with --debug to see where."
    return f"\n  The traceback is in {path}; --debug shows it here."
