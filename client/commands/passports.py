"""`isthmus-client passport`: passports, which go as sealed files from partner to partner.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .answers import AsJson, Debug, Settings, answer, day, epilog, libraries_on_stderr, progress, read_settings
from .passport_server import send, serve

if TYPE_CHECKING:
    from ..settings import ClientSettings

EPILOG = epilog(0, 1, 2, 3, 4, 6, 8, 12, 17, 130)
CONSENT = (
    "An exact passport is disclosure by consent: it shows its one target what a user likes at the source, and for a short history it shows "
    "the items themselves. Export passports only of users who agreed to that for this partner."
)
PRIVATE_CONSENT = (
    "A private passport hides what a user did here, not that they are a user here. It is one noisy direction of their interest, drawn once "
    "for life: every partner and every renewal gets the same bytes, so that all of them together learn no more than local differential "
    "privacy of epsilon_u = {epsilon:g} allows. Every other domain that makes one of the same person adds its own epsilon_u. Of somebody "
    "whose exact passport went out as well, to whomever, it hides nothing."
)

passport = typer.Typer(help="Passports of users who linked accounts: made, sealed, opened, counted.", epilog=EPILOG, no_args_is_help=True)
passport.command(epilog=EPILOG)(serve)
passport.command(epilog=EPILOG)(send)


@passport.command(epilog=EPILOG)
def keys(
    partner_toml: Settings,
    out: Annotated[
        Path | None, typer.Option(help="Where the public keys are written; DOMAIN.keys.json here when left out.", metavar="FILE")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make this domain's keys, once, and write the public half for partners.

    The private keys stay in the home folder, readable by you alone. Hand the public file to each partner over a channel you both trust,
    and compare the fingerprint by telephone; the partner puts it into the folder that its settings name under passports.partners.

    Where the settings name passports.address, the file says so too, with the certificate of the server there, which is made once: partners
    can then deliver with 'passport send'. The fingerprint vouches for both.

    \b
    Examples:
      isthmus-client passport keys partner.toml
      isthmus-client passport keys partner.toml --out books.json
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..key_rotation import own_keys
        from ..public_keys import public_of, write_public

        public = public_of(settings, own_keys(settings))
        path = out or Path(f"{settings.domain}.keys.json")
        write_public(path, public)
    said = f"public keys of '{settings.domain}': {path}\nfingerprint: {public.fingerprint}"
    answer(as_json, {"domain": settings.domain, "file": str(path), "fingerprint": public.fingerprint}, said)


@passport.command("export", epilog=EPILOG)
def export_(
    partner_toml: Settings,
    to: Annotated[str, typer.Option(help="Domain of the one partner that may open the file.", metavar="TARGET")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write one sealed file with the passports of users who linked their account with TARGET.

    An exact passport is disclosure by consent: it shows its one target what a user likes here, and for a short history it shows the items
    themselves. Export passports only of users who agreed to that for this partner.

    With passports.mode = "private" it is one noisy direction instead, with local differential privacy of passports.epsilon_u. It is drawn
    once for each person, for life: each target and each renewal gets the same. It hides what a user did here, not that they are a user.

    The file is signed, sealed to the target's key and padded, so that its size says little about how many users are linked. Hand it to the
    partner yourself; it never passes the coordinator. It belongs to the run whose first messages fixed the interest space.

    \b
    Example:
      isthmus-client passport export partner.toml --to films
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..passport_exchange import export
        from ..queries import CurrentRun, opened

        version = CurrentRun(settings).space_version()  # before any data are opened
        config, prepared = opened(settings, progress())
        made = export(settings, config, prepared, to, version)
    consent = CONSENT if made.terms is None else PRIVATE_CONSENT.format(epsilon=made.terms.epsilon)
    print(consent, file=sys.stderr)
    size = made.path.stat().st_size
    document = {
        "source": settings.domain,
        "target": to,
        "file": str(made.path),
        "bytes": size,
        "passports": made.passports,
        "issued": day(made.issued),
        "expires": day(made.expires),
        "mode": "exact" if made.terms is None else "private",
        "epsilon_u": None if made.terms is None else made.terms.epsilon,
        "consent": consent,
    }
    kind = "" if made.terms is None else "private "
    answer(
        as_json, document, f"{made.passports:,} {kind}passports to '{to}', valid until {day(made.expires)}: {made.path} ({size:,} bytes)"
    )


@passport.command("import", epilog=EPILOG)
def import_(
    partner_toml: Settings,
    file: Annotated[
        Path | None,
        typer.Argument(help="File that a partner sent; all that lies in the inbox when left out.", metavar="FILE", show_default=False),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Open a partner's file, check all of it, and enter its passports into the local register.

    One bad record refuses the whole file. The same file twice changes nothing, and an older passport never replaces a newer one.

    Without FILE everything in the inbox is opened. Erasure notices that partners delivered are carried out first, as 'forget --notice'
    does, and deleted. What cannot be used is named and stays.

    \b
    Examples:
      isthmus-client passport import partner.toml books-to-films.passports
      isthmus-client passport import partner.toml
    """
    del debug
    settings = read_settings(partner_toml)
    if file is None:
        _import_inbox(settings, as_json)
        return
    with libraries_on_stderr():
        from ..passport_exchange import take_in
        from ..queries import CurrentRun

        run = CurrentRun(settings)
        new = take_in(settings, run.space_version(), file, dimension=run.config().model.dimension)
    words = f"{new:,} passports are new or renewed" if new else "no passport is new: this file, or a newer one, was imported before"
    answer(as_json, {"domain": settings.domain, "file": str(file), "new": new}, words)


def _import_inbox(settings: ClientSettings, as_json: bool) -> None:
    with libraries_on_stderr():
        from ..passport_inbox import open_inbox

        opened = open_inbox(settings)
    document = {
        "domain": settings.domain,
        "new": opened.new,
        "files": list(opened.files),
        "notices": list(opened.notices),
        "left_out": [{"file": name, "why": why} for name, why in opened.left_out],
    }
    said = [f"carried out and deleted: {name}" for name in opened.notices]
    said += [f"opened: {name}" for name in opened.files]
    said += [f"left out: {name}: {why}" for name, why in opened.left_out]
    answer(as_json, document, "\n".join([*(said or ["the inbox is empty"]), f"{opened.new:,} passports are new or renewed"]))


@passport.command("list", epilog=EPILOG)
def list_(partner_toml: Settings, as_json: AsJson = False, debug: Debug = False) -> None:
    """Count the passports that went out and came in, by partner, with their dates.

    Exact counts, for your own eyes: they say how many users are linked, so they belong in no report. Of private passports it says what was
    booked: epsilon_u for each person who was ever drawn, once, whatever number of targets and renewals.

    \b
    Example:
      isthmus-client passport list partner.toml --json
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..passport_exchange import partners
        from ..register import Register

        known = sorted(partners(settings))
        path = settings.at_home("register.sqlite")
        entries, spent = [], None
        if path.is_file():
            from ..private_passports import booked

            with Register(path) as register:
                entries, spent = register.overview(), booked(register)
    now = datetime.now(UTC).timestamp()
    rows = [
        {
            "direction": entry.direction,
            "partner": entry.partner,
            "space_version": entry.space_version,
            "mode": "exact" if entry.epsilon is None else "private",
            "epsilon_u": entry.epsilon,
            "passports": entry.passports,
            "issued": day(entry.issued),
            "expires": day(entry.expires),
            "expired": entry.expires <= now,
        }
        for entry in entries
    ]
    document = {
        "domain": settings.domain,
        "partners_with_keys": known,
        "passports": rows,
        "booked": None if spent is None else dataclasses.asdict(spent),
    }
    lines = [
        f"{row['direction']:<4} {row['partner']:<20} {row['passports']:>9,}  issued {row['issued']}  expires {row['expires']}"
        f"  space {row['space_version']}{'  private' if row['mode'] == 'private' else ''}"
        f"{'  EXPIRED' if row['expired'] else ''}"
        for row in rows
    ]
    if spent is not None:
        gone = f", {spent.forgotten:,} of them forgotten since" if spent.forgotten else ""
        lines.append(f"booked: epsilon_u {spent.epsilon:g} for each of {spent.people:,} people{gone}, once for life")
    answer(as_json, document, "\n".join([f"keys of: {', '.join(known) or 'nobody yet'}", *(lines or ["no passports yet"])]))
