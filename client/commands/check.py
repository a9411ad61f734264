"""`isthmus-client check`: before the node is started, is everything there?

Heavy libraries are imported inside the command: ``--help`` answers at once.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from .answers import AsJson, Debug, Settings, epilog, libraries_on_stderr, print_document

if TYPE_CHECKING:
    from ..check_line import Line

NOT_READY = 36
EPILOG = epilog(0, 1, 2, NOT_READY, 130)
_WIDTH = 18


def check(
    partner_toml: Settings,
    skip_data: Annotated[bool, typer.Option("--skip-data", help="Do not read the tables, which takes long where they are large.")] = False,
    skip_server: Annotated[bool, typer.Option("--skip-server", help="Do not connect to the coordinator's server.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look at everything that the node needs: each line is green, or says what to do.

    Settings, installation, keys and who may read them, ledger and what is left of it, allowed bundles, text model, data (read as a round
    reads them, with counts for your own eyes), and the coordinator's server: whether it is reached, shows the certificate that it should,
    lets nodes in and nobody else, and has the same time. Nothing is changed.

    \b
    Examples:
      isthmus-client check partner.toml
      isthmus-client check partner.toml --skip-data --json
    """
    del debug
    out = sys.stdout  # a library's while it works
    with libraries_on_stderr():
        from ..preflight import preflight

        told = functools.partial(_print, out)
        report = preflight(partner_toml, data=not skip_data, server=not skip_server, told=_nothing if as_json else told)
    red = sum(not line.ok for line in report.lines)
    if as_json:
        print_document({"domain": report.domain, "ready": report.ready, "lines": [asdict(line) for line in report.lines]})
    else:
        print(f"{len(report.lines) - red} green, {red} red: {'ready' if report.ready else 'not ready'}")
    if red:
        raise typer.Exit(NOT_READY)


def _nothing(_line: Line) -> None:
    """Where one document is printed in the end."""


def _print(out: TextIO, line: Line) -> None:
    """One line, as soon as it is known; in colours where somebody watches."""
    word = "ok " if line.ok else "RED"
    if out.isatty():
        word = typer.style(word, fg="green" if line.ok else "red", bold=not line.ok)
    said = [f"{word}  {line.name:<{_WIDTH}} {line.what}"]
    if not line.ok and line.do:
        said.append(f"{'':<5}{'':<{_WIDTH}} -> {line.do}")
    print("\n".join(said), file=out, flush=True)
