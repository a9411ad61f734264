"""`isthmus-client passport serve` and `send`: sealed files from partner to partner over the network, with nobody in between.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.addresses import is_address
from shared.errors import ConfigError, UsageError

from .answers import AsJson, Debug, Settings, answer, libraries_on_stderr, read_settings

if TYPE_CHECKING:
    from ..passport_certificate import Identity
    from ..passport_service import PassportService
    from ..settings import ClientSettings


def serve(
    partner_toml: Settings,
    listen: Annotated[
        str, typer.Option(help="Where to listen; passports.listen of the settings when left out.", metavar="HOST:PORT", show_default=False)
    ] = "",
    debug: Debug = False,
) -> None:
    """Take passports and erasure notices that partners deliver, until Ctrl-C or SIGTERM.

    They are put into the inbox, sealed as they came; 'passport import' opens them, or the next run if passports.automatic is set. Only
    partners whose public keys are here are listened to. Others learn nothing: every failure has one and the same answer, and the reason is
    told here. Partners find the server by the public keys that 'passport keys' writes once passports.address is set.

    \b
    Example:
      isthmus-client passport serve partner.toml --listen 0.0.0.0:8444
    """
    del debug
    settings = read_settings(partner_toml)
    address = listen or settings.passports.listen
    if not address:
        raise ConfigError("there is no address to listen at", do="Set passports.listen in partner.toml, or give --listen HOST:PORT.")
    if not is_address(address):
        raise UsageError("--listen is not HOST:PORT", do="An address of IPv6 stands in brackets: [::1]:8444.")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # every scanner that knocks would be a line
    with libraries_on_stderr():
        from shared.process_lock import only_one

        from ..key_rotation import own_keys
        from ..passport_certificate import identity
        from ..passport_exchange import partners
        from ..passport_service import PassportService

        own_keys(settings)
        partners(settings)  # a damaged file is said now, not when somebody delivers
        shown = identity(settings)
        with only_one(settings.at_home("passports_service"), f"the server for passports of '{settings.domain}'"):
            _serve(settings, PassportService, address, shown)


def _serve(settings: ClientSettings, kind: type[PassportService], address: str, shown: Identity) -> None:
    import asyncio
    import signal

    from shared.supervision import tell_on_stderr

    from ..passport_service import serve as run

    async def until_told() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        said = f"'{settings.domain}' takes passports at {address}; its certificate ends on {shown.until:%Y-%m-%d}"
        await run(kind(settings), address, shown, stop, started=lambda: tell_on_stderr(said))

    asyncio.run(until_told())
    tell_on_stderr("stopped")


def send(
    partner_toml: Settings,
    to: Annotated[str, typer.Option(help="Domain of the partner.", metavar="TARGET")],
    file: Annotated[
        Path | None, typer.Option(help="One sealed file; all in the outbox that was not delivered yet when left out.", metavar="FILE")
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to try again while the partner does not answer.", metavar="SECONDS", min=0, max=604_800)
    ] = 600.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Deliver sealed passports and erasure notices to a partner's server.

    Its address, and the one certificate that is accepted there, are in the partner's public keys. The coordinator is not involved. Cut off,
    the command tries again; called again, it goes on with what the partner does not have yet. A notice that was delivered is removed from
    the outbox.

    \b
    Examples:
      isthmus-client passport send partner.toml --to films
      isthmus-client passport send partner.toml --to films --file books-to-films.passports
    """
    del debug
    settings = read_settings(partner_toml)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with libraries_on_stderr():
        from ..passport_delivery import deliver, receiver, waiting

        address = receiver(settings, to).address
        files = [file] if file is not None else waiting(settings, to)
        done = list(deliver(settings, to, files, patience_s=wait))
    document = {
        "domain": settings.domain,
        "target": to,
        "address": address,
        "delivered": [{"file": str(one.path), "kind": one.kind, "bytes": one.bytes} for one in done],
    }
    lines = [f"delivered to '{to}' at {address}: {one.path} ({one.bytes:,} bytes)" for one in done]
    answer(as_json, document, "\n".join(lines) or f"nothing waits for '{to}'; 'passport export' makes a file")
