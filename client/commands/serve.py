"""`isthmus-client serve`: recommendations for the partner's own programs, over gRPC.

Heavy libraries are imported inside the command: ``--help`` answers at once.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.addresses import is_address
from shared.errors import UsageError

from .answers import Debug, Settings, epilog, libraries_on_stderr, read_settings

if TYPE_CHECKING:
    import grpc  # type: ignore[import-untyped]

    from ..serving import RecommenderService

SERVE_EPILOG = epilog(0, 1, 2, 3, 4, 6, 7, 8, 12, 17, 130)


def serve(
    partner_toml: Settings,
    listen: Annotated[str, typer.Option(help="Where to listen.", metavar="HOST:PORT")] = "127.0.0.1:8445",
    certificate: Annotated[
        Path | None, typer.Option(help="Certificate to show, PEM. Without one, the loopback only.", metavar="FILE", show_default=False)
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (0600), PEM.", metavar="FILE", show_default=False)] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Who issues certificates to callers, PEM: only they may call.", metavar="FILE", show_default=False)
    ] = None,
    blocked: Annotated[Path | None, typer.Option(help="Items that nobody is offered.", metavar="FILE", show_default=False)] = None,
    in_stock: Annotated[Path | None, typer.Option(help="The only items that are offered.", metavar="FILE", show_default=False)] = None,
    engine: Annotated[str, typer.Option(help="How the best items are found: auto, exact, faiss or int8.")] = "auto",
    deadline: Annotated[float, typer.Option(help="Longest time for an answer.", metavar="SECONDS", min=0.01, max=600.0)] = 10.0,
    debug: Debug = False,
) -> None:
    """Recommend to your own users, for your own programs, until Ctrl-C or SIGTERM.

    They ask over gRPC for lists, similar items and explanations, tell what users did since, and hand over passports; client/proto has the
    page, and the server describes itself (reflection, health). A new delivery, new passports and forgotten users take effect within
    seconds. Before the first delivery the server is up and says so.

    \b
    Examples:
      isthmus-client serve partner.toml
      isthmus-client serve partner.toml --listen 10.0.0.5:8445 --certificate shop.crt --key shop.key --client-ca callers.crt
    """
    del debug
    settings = read_settings(partner_toml)
    if not is_address(listen):
        raise UsageError("--listen is not HOST:PORT", do="An address of IPv6 stands in brackets: [::1]:8445.")
    if client_ca is not None and certificate is None:
        raise UsageError("--client-ca needs --certificate and --key: callers show theirs over TLS only")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # every scanner that knocks would be a line
    with libraries_on_stderr():
        from shared.process_lock import only_one

        from ..recommender.engines import ENGINES
        from ..recommender.recommender import Recommender
        from ..serving import RecommenderService
        from ..serving_tls import credentials, read_identity

        if engine not in ENGINES:
            raise UsageError("--engine names no engine", do=f"It is one of: {', '.join(ENGINES)}.")
        for option, path in (("--blocked", blocked), ("--in-stock", in_stock)):
            if path is not None and not path.is_file():
                raise UsageError(f"there is no file for {option}", do="Check the path.")
        shown = read_identity(settings, certificate, key)
        tls = credentials(shown, client_ca) if shown is not None else None
        opening = partial(Recommender.open, settings, engine=engine, blocked=blocked, in_stock=in_stock)
        with only_one(settings.at_home("recommender_service"), f"the service that recommends for '{settings.domain}'"):
            until = f"; its certificate ends on {shown.until:%Y-%m-%d}" if shown is not None else ", in the clear"
            said = f"'{settings.domain}' recommends at {listen}{until}"
            _serve(partial(RecommenderService, settings, opening, deadline_s=deadline), listen, tls, said)


def _serve(made: partial[RecommenderService], address: str, tls: grpc.ServerCredentials | None, said: str) -> None:
    import asyncio
    import signal

    from shared.supervision import tell_on_stderr

    from ..serving import serve as run

    async def until_told() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run(made(), address, tls, stop, started=lambda: tell_on_stderr(said))

    asyncio.run(until_told())
