"""What a command says when it ends: an exit code, a message that says what to do next, and never a traceback unless one was asked for."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import click

from .errors import IsthmusError, StorageError

INTERRUPTED = 130


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
