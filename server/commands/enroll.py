"""`isthmus-server enroll` and `partners`: who takes part.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .answers import AsJson, Debug, HomeFolder, answer, epilog, open_home, warn

if TYPE_CHECKING:
    from ..enrolment import Listed

EPILOG = epilog(0, 1, 2, 3, 4, 6, 130)

partners = typer.Typer(help="Who is enrolled, and who no longer is.", epilog=EPILOG, no_args_is_help=True)


def enroll(
    home: HomeFolder,
    partner_json: Annotated[Path, typer.Argument(help="Card that a partner sent.", metavar="PARTNER_JSON")],
    replace: Annotated[
        str | None, typer.Option(help="Why a domain gets another signing key or a higher ceiling; kept in the history.", metavar="REASON")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="What the partner read out to you; anything else is refused.", metavar="GROUPS")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take a partner in: check its card, note its keys and ceiling, and write the card to send back.

    The card is signed, so nobody changed it; whether it is the partner's you only know after comparing its fingerprint with the partner,
    over another way than the file came by. The other partners' cards are written anew, because they name the new partner's public keys.

    A domain that is enrolled with another signing key, or with a lower ceiling, is refused unless --replace says why.

    \b
    Examples:
      isthmus-server enroll coordinator PARTNER.json
      isthmus-server enroll coordinator PARTNER.json --fingerprint "0fd2 51c8 8e21 a3b0 77f5 12ce 90ab 4d16"
      isthmus-server enroll coordinator PARTNER.json --replace "new machine after a disk failed, confirmed by A. Officer"
    """
    del debug
    from shared.enrolment import PartnerCard
    from shared.errors import DataError

    from .. import enrolment

    opened = open_home(home)
    card = PartnerCard.read(partner_json)
    if fingerprint is not None and fingerprint.lower().split() != card.fingerprint.split():
        raise DataError(
            f"the fingerprint of {partner_json} is {card.fingerprint}, not what the partner read out",
            do="Somebody changed the file on its way, or it is an older one: ask for it again.",
        )
    done = enrolment.enroll(opened, card, replace=replace)
    warn(done.remarks)
    document = {
        "domain": card.domain,
        "fingerprint": card.fingerprint,
        "new": done.changed is None,
        "changed": list(done.changed or ()),
        "ceiling_epsilon": card.ceiling_epsilon,
        "delta": card.delta,
        "join": str(done.join_card),
        "join_fingerprint": opened.join_card().fingerprint,
        "send_again": [str(enrolment.join_file(opened, domain)) for domain in done.told],
        "remarks": list(done.remarks),
    }
    what = (
        "enrolled"
        if done.changed is None
        else f"changed ({', '.join(done.changed)})"
        if done.changed
        else "enrolled before, nothing changed"
    )
    words = [
        f"'{card.domain}' {what}: ceiling {card.ceiling_epsilon:g} (delta {card.delta:g}, unit: user)",
        f"fingerprint of its card:    {card.fingerprint}",
        f"fingerprint of yours:       {document['join_fingerprint']}",
        f"send it {done.join_card}",
        *(f"and again to '{domain}', which learns the new keys: {enrolment.join_file(opened, domain)}" for domain in done.told),
    ]
    answer(as_json, document, "\n".join(words))


@partners.command("list", epilog=EPILOG)
def list_(home: HomeFolder, as_json: AsJson = False, debug: Debug = False) -> None:
    """List who is enrolled, with the ceiling that was agreed on.

    \b
    Example:
      isthmus-server partners list coordinator
    """
    del debug
    from ..enrolment import listed

    opened = open_home(home)
    found = listed(opened)
    words = [_line(one) for one in found] or [f"nobody is enrolled: isthmus-server enroll {home} PARTNER.json"]
    answer(as_json, {"home": str(opened.root), "partners": [_record(one) for one in found]}, "\n".join(words))


@partners.command(epilog=EPILOG)
def remove(
    home: HomeFolder,
    domain: Annotated[str, typer.Argument(help="Domain that no longer takes part.", metavar="DOMAIN")],
    reason: Annotated[str, typer.Option(help="Why; kept in the history.", metavar="REASON")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take a partner off the list: no later run asks it.

    A run that is going on keeps the list that it began with. What the partner's ledger says stays with the partner; its receipts and the
    history stay here.

    \b
    Example:
      isthmus-server partners remove coordinator books --reason "the agreement ended"
    """
    del debug
    from .. import enrolment

    opened = open_home(home)
    told = enrolment.remove(opened, domain, reason=reason)
    again = [str(enrolment.join_file(opened, name)) for name in told]
    words = [f"'{domain}' is no longer enrolled", *(f"send again: {path}" for path in again)]
    answer(as_json, {"domain": domain, "removed": True, "send_again": again}, "\n".join(words))


def _record(one: Listed) -> dict[str, Any]:
    ceiling = one.agreement.ceiling_epsilon
    card = json.loads(one.card.to_json()) if one.card is not None else None
    return {
        "domain": one.domain,
        "ceiling_epsilon": ceiling if math.isfinite(ceiling) else None,
        "verify_key": one.agreement.verify_key,
        "fingerprint": one.card.fingerprint if one.card is not None else None,
        "card": card,
    }


def _line(one: Listed) -> str:
    ceiling = one.agreement.ceiling_epsilon
    said = f"{one.domain:<24} ceiling {ceiling:g}" if math.isfinite(ceiling) else f"{one.domain:<24} no ceiling"
    return f"{said:<48} {one.card.fingerprint if one.card is not None else '(no card: written by hand)'}"
