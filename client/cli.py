"""isthmus-client: a partner's own commands, on its own machines. Each group of commands is a module of `client.commands`.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from shared.console import command_of, error_record, guarded

from .commands.allow import EPILOG as ALLOW_EPILOG
from .commands.allow import allow, allowed
from .commands.answers import EPILOG, epilog, print_document
from .commands.canary import EPILOG as CANARY_EPILOG
from .commands.canary import canary
from .commands.check import EPILOG as CHECK_EPILOG
from .commands.check import check
from .commands.forget import forget
from .commands.init import EPILOG as INIT_EPILOG
from .commands.init import init, join
from .commands.ledger import ledger
from .commands.passports import passport
from .commands.recommend import EPILOG as RECOMMEND_EPILOG
from .commands.recommend import recommend, similar
from .commands.release import release
from .commands.serve import SERVE_EPILOG, serve
from .commands.up import STATUS_EPILOG, UP_EPILOG, status, up

app = typer.Typer(
    help="One domain's private side: what a partner does with its own data, on its own machines.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(epilog=INIT_EPILOG)(init)
app.command(epilog=INIT_EPILOG)(join)
app.command(epilog=CHECK_EPILOG)(check)
app.command(epilog=UP_EPILOG)(up)
app.command(epilog=STATUS_EPILOG)(status)
app.add_typer(passport, name="passport")
app.add_typer(ledger, name="ledger")
app.add_typer(release, name="release")
app.command(epilog=CANARY_EPILOG)(canary)
app.command(epilog=ALLOW_EPILOG)(allow)
app.command(epilog=ALLOW_EPILOG)(allowed)
app.command(epilog=epilog(0, 1, 2, 3, 4, 6, 7, 8, 9, 12, 17, 130))(forget)
app.command(epilog=SERVE_EPILOG)(serve)

app.command(epilog=RECOMMEND_EPILOG)(recommend)
app.command(epilog=RECOMMEND_EPILOG)(similar)


@app.callback()
def _isthmus_client() -> None:
    """One domain's private side: what a partner does with its own data, on its own machines."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and leaves with its exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = command_of(app)
    code = guarded(
        lambda: command.main(args=given, prog_name="isthmus-client", standalone_mode=False),
        debug="--debug" in given,
        on_error=(lambda error, code: print_document(error_record(error, code))) if "--json" in given else None,
    )
    sys.exit(code)


if __name__ == "__main__":
    main()
