"""isthmus-server: the coordinator's own commands. Each group of commands is a module of `server.commands`.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from shared.console import command_of, error_record, guarded

from .commands.answers import EPILOG, print_document
from .commands.enroll import EPILOG as ENROLL_EPILOG
from .commands.enroll import enroll, partners
from .commands.home import EPILOG as HOME_EPILOG
from .commands.home import init, renew
from .commands.report import EPILOG as REPORT_EPILOG
from .commands.report import report
from .commands.run import BUNDLE_EPILOG, bundle, resume, run
from .commands.run import EPILOG as RUN_EPILOG
from .commands.status import EPILOG as STATUS_EPILOG
from .commands.status import status, stop
from .commands.up import EPILOG as UP_EPILOG
from .commands.up import up

app = typer.Typer(
    help="The coordinator: a home with its keys and certificates, and the partners who are enrolled.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(epilog=HOME_EPILOG)(init)
app.command(epilog=HOME_EPILOG)(renew)
app.command(epilog=ENROLL_EPILOG)(enroll)
app.add_typer(partners, name="partners")
app.command(epilog=UP_EPILOG)(up)
app.command(epilog=BUNDLE_EPILOG)(bundle)
app.command(epilog=RUN_EPILOG)(run)
app.command(epilog=STATUS_EPILOG)(status)
app.command(epilog=RUN_EPILOG)(resume)
app.command(epilog=STATUS_EPILOG)(stop)
app.command(epilog=REPORT_EPILOG)(report)


@app.callback()
def _isthmus_server() -> None:
    """The coordinator: a home with its keys and certificates, and the partners who are enrolled."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and leaves with its exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = command_of(app)
    code = guarded(
        lambda: command.main(args=given, prog_name="isthmus-server", standalone_mode=False),
        debug="--debug" in given,
        on_error=(lambda error, code: print_document(error_record(error, code))) if "--json" in given else None,
    )
    sys.exit(code)


if __name__ == "__main__":
    main()
