"""`isthmus-server init` and `renew`: the coordinator's home and its certificate.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .answers import AsJson, Debug, HomeFolder, answer, epilog, open_home, warn

if TYPE_CHECKING:
    from ..home import Home

EPILOG = epilog(0, 1, 2, 3, 6, 130)
_HOST = typer.Option("--host", help="Name or address of this server that partners use; may be given again.", metavar="NAME")


def init(
    home: Annotated[Path, typer.Argument(help="Folder to make; everything of the coordinator will be in it.", metavar="HOME")],
    host: Annotated[list[str] | None, _HOST] = None,
    port: Annotated[int | None, typer.Option(help="Where partners connect; 8443 when left out.")] = None,
    superlink_port: Annotated[int | None, typer.Option(help="The SuperLink's port on this machine; 9443 when left out.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make the coordinator's home: its own authority, certificate, keys, settings and the proxy's configuration.

    Nothing that is there is overwritten. A home that was left half made is finished by calling this again, and after a change of
    server.toml this writes the files that follow from it. The first --host is what partners are told; the certificate is for all of them.

    JOIN.json in the home is an invitation: send it to whoever is to take part, and let them compare its fingerprint with you by telephone.

    \b
    Examples:
      isthmus-server init coordinator --host isthmus.example.org
      isthmus-server init coordinator --host isthmus.example.org --host 192.0.2.7 --port 443
      isthmus-server init coordinator
    """
    del debug
    from ..enrolment import refresh
    from ..home import Home

    made = Home.create(home, _settings(home, host or [], port, superlink_port))
    told = refresh(made.home)
    warn(made.home.warnings())
    document = {**_document(made.home), "new": list(made.new), "kept": list(made.kept), "told": list(told)}
    first = (
        f"made {made.home.root}"
        if not made.kept
        else f"finished {made.home.root}"
        if made.new
        else f"nothing is missing in {made.home.root}"
    )
    words = [
        first,
        *(f"  new: {name}" for name in made.new),
        *_sent_again(made.home, told),
        _about(made.home),
        f"edit {made.home.settings_file}, and send {made.home.invitation} to your partners",
        f"fingerprint of the invitation: {document['fingerprint']}",
    ]
    answer(as_json, document, "\n".join(words))


def renew(
    home: HomeFolder,
    host: Annotated[list[str] | None, _HOST] = None,
    within: Annotated[int | None, typer.Option(help="Only where fewer days are left: for timers.", metavar="DAYS", min=0)] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make a new private key for the server too.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a new certificate for the server, by the same authority: partners notice nothing.

    With --host the names change; they are written into server.toml, whose remarks are written anew. Where the first name changes, partners
    have to be told: send them their cards again. The new certificate counts from the next start of `isthmus-server up`.

    \b
    Examples:
      isthmus-server renew coordinator
      isthmus-server renew coordinator --within 60
      isthmus-server renew coordinator --host isthmus.example.org --host 192.0.2.8
    """
    del debug
    from ..renewal import renew as renewed

    done = renewed(home, hosts=tuple(host or ()), within_days=within, new_key=new_key)
    opened = open_home(home)
    document = {**_document(opened), "renewed": done.renewed, "told": list(done.told)}
    words = [f"renewed {opened.certificate}" if done.renewed else "not renewed: it lasts long enough", _about(opened)]
    words += _sent_again(opened, done.told)
    if done.renewed:
        words.append("start isthmus-server up again to use it")
    answer(as_json, document, "\n".join(words))


def _settings(home: Path, hosts: list[str], port: int | None, superlink_port: int | None) -> Any:
    """Settings of a new home; of one that is there its own, which what was asked for may not contradict.

    Raises:
        UsageError: a new home needs a host; an old one has others.
    """
    from shared.config import build
    from shared.errors import UsageError

    from ..home import SETTINGS_FILE
    from ..settings import ServerSettings

    place = home / SETTINGS_FILE
    asked = {key: value for key, value in (("port", port), ("superlink_port", superlink_port)) if value is not None}
    if not place.exists():
        if not hosts:
            raise UsageError("a new home needs the name that partners reach this server by", do="Give it with --host.")
        return build(ServerSettings, {"hosts": ",".join(hosts), **asked}, "")
    there = ServerSettings.read(place)
    if hosts and tuple(hosts) != there.host_names:
        raise UsageError(
            f"{home} is the home of {', '.join(there.host_names)}",
            do="Leave --host out to finish it; isthmus-server renew --host changes the names.",
        )
    if wrong := [key for key, value in asked.items() if getattr(there, key) != value]:
        raise UsageError(f"{place} has another {wrong[0]}", do="Change it there, then call this without the option.")
    return there


def _document(home: Home) -> dict[str, Any]:
    from .. import certificates

    card = home.join_card()
    leaf, authority = certificates.validity(home.certificate), certificates.validity(home.ca)
    return {
        "home": str(home.root),
        "server": card.server,
        "hosts": list(home.settings.host_names),
        "invitation": str(home.invitation),
        "fingerprint": card.fingerprint,
        "coordinator_key": card.coordinator_key,
        "certificate_until": leaf.until.strftime("%Y-%m-%d"),
        "authority_until": authority.until.strftime("%Y-%m-%d"),
    }


def _sent_again(home: Home, told: tuple[str, ...]) -> list[str]:
    from ..enrolment import join_file

    return [f"send '{domain}' its card again: {join_file(home, domain)}" for domain in told]


def _about(home: Home) -> str:
    said = _document(home)
    dates = f"its certificate holds until {said['certificate_until']}, the authority until {said['authority_until']}"
    return f"partners reach {said['server']}; {dates}"
