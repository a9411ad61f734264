"""`isthmus-server report`: one page about a run.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .answers import AsJson, Debug, HomeFolder, answer, epilog, open_home
from .run import RunName

EPILOG = epilog(0, 1, 2, 3, 4, 5, 6, 23, 130)


def report(
    home: HomeFolder,
    run: RunName,
    release: Annotated[
        list[Path] | None, typer.Option(help="A partner's file of `isthmus-client release metric`; may be given again.", metavar="FILE")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the run folder.", metavar="FILE")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write what a run spent, what it brought, and what went wrong: one self-contained page, and beside it the same as JSON.

    \b
    Examples:
      isthmus-server report coordinator last
      isthmus-server report coordinator last --release books-hit-rate.json --out tiny.html
    """
    del debug
    from ..report import build, write
    from ..runs import find

    opened = open_home(home)
    folder = find(opened, run)
    document = build(opened, folder, release or [])
    page = out or folder / "report.html"
    write(document, page, page.with_suffix(".json"))
    answer(as_json, document, f"{page}\n{page.with_suffix('.json')}")
