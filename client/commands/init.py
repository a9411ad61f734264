"""`isthmus-client init` and `join`: how a domain begins at its partner, and how it gets to know its coordinator.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import UsageError

from .answers import AsJson, Debug, answer, epilog, libraries_on_stderr

if TYPE_CHECKING:
    from ..enrolling import Begun, Joined, Step

EPILOG = epilog(0, 1, 2, 3, 4, 6, 7, 8, 9, 12, 130)

Folder = Annotated[Path, typer.Argument(help="Folder of the domain.", metavar="FOLDER")]
Expected = Annotated[
    str, typer.Option("--fingerprint", help="The card's fingerprint as the coordinator told it; another one is refused.", metavar="WORDS")
]


def init(
    folder: Folder,
    domain: Annotated[str, typer.Option(help="Name of the domain: small letters, digits, '-' and '_'.", metavar="NAME")],
    ceiling: Annotated[float | None, typer.Option(help="Make the ledger, with this epsilon for each user, for life.", metavar="E")] = None,
    delta: Annotated[float | None, typer.Option(help="The delta of the ceiling.", metavar="D")] = None,
    set_by: Annotated[str, typer.Option(help="Who decides about the ceiling; shown in every report.", metavar="NAME")] = "",
    change: Annotated[
        list[str] | None, typer.Option("--set", help="A key of partner.toml, such as data.items=films.parquet.", metavar="KEY=VALUE")
    ] = None,
    join_card: Annotated[Path | None, typer.Option("--join", help="The coordinator's JOIN.json, where it is here.", metavar="FILE")] = None,
    expected: Expected = "",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a domain's folder: settings with comments, keys that stay here, and PARTNER.json to send to the coordinator.

    The ceiling is decided once, for the domain's whole life: with --ceiling the ledger is made now; without it, edit partner.toml first
    and then give isthmus-client ledger create. Nothing is ever overwritten; a second call finishes what a first one left, says what is
    there, and makes PARTNER.json anew where the settings or the keys have changed (the old one is moved aside).

    \b
    Examples:
      isthmus-client init books --domain books --ceiling 8 --set-by "A. Officer" --set data.items=catalogue.csv
      isthmus-client init books --domain books --join JOIN.json
    """
    del debug
    from shared.enrolment import JoinCard

    from ..enrolling import SETTINGS_FILE, begin
    from ..enrolling import join as take

    changes = _changes(change or [])
    given = {"ceiling.epsilon": ceiling, "ceiling.delta": delta, "ceiling.set_by": set_by or None}
    changes.update({key: value for key, value in given.items() if value is not None})
    with libraries_on_stderr():
        card = None if join_card is None else JoinCard.read(join_card)
        begun = begin(folder, domain=domain, changes=changes, with_ledger=ceiling is not None)
        joined = None if card is None else take(folder / SETTINGS_FILE, card, expected=expected)
    words = [_about(begun, folder, next_step=joined is None), *([] if joined is None else ["", _about_joining(joined)])]
    answer(as_json, {**_record(begun), **({} if joined is None else {"joined": _joined(joined)})}, "\n".join(words))


def join(
    folder: Annotated[Path, typer.Argument(help="Folder of the domain, or its partner.toml.", metavar="FOLDER")],
    card: Annotated[Path, typer.Argument(help="JOIN.json, which the coordinator sent.", metavar="JOIN_JSON")],
    expected: Expected = "",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take the coordinator's card: its address, the certificate to trust, the key that signs its runs, and the other partners' keys.

    Compare the fingerprint with the coordinator by telephone, or over another way than the one the card came by: whoever can exchange the
    card could otherwise be your coordinator. What is here already is never replaced.

    \b
    Examples:
      isthmus-client join books JOIN.json
      isthmus-client join books JOIN.json --fingerprint "4f1c 09ab 77d2 e001 5b3a 9c44 120f 8e6d"
    """
    del debug
    from shared.enrolment import JoinCard

    from ..enrolling import SETTINGS_FILE
    from ..enrolling import join as take

    with libraries_on_stderr():
        joined = take(folder / SETTINGS_FILE if folder.is_dir() else folder, JoinCard.read(card), expected=expected)
    answer(as_json, _joined(joined), _about_joining(joined))


def _changes(given: list[str]) -> dict[str, Any]:
    from ..settings_file import plain_value

    found: dict[str, Any] = {}
    for each in given:
        key, equals, text = each.partition("=")
        if not equals or not key.strip():
            raise UsageError("--set takes KEY=VALUE", do="For example --set data.items=films.parquet")
        found[key.strip()] = plain_value(text.strip())
    return found


def _steps(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    return [{"what": step.what, "path": str(step.path), "made": step.made} for step in steps]


def _lines(steps: tuple[Step, ...]) -> list[str]:
    width = max(len(step.what) for step in steps)
    return [f"{step.what:<{width}}  {'made' if step.made else 'kept'}  {step.path}" for step in steps]


def _record(begun: Begun) -> dict[str, Any]:
    card = begun.card
    return {
        "domain": card.domain,
        "settings": str(begun.steps[0].path),
        "card": str(begun.steps[-1].path),
        "fingerprint": card.fingerprint,
        "verify_key": card.verify_key,
        "ceiling_epsilon": card.ceiling_epsilon,
        "delta": card.delta,
        "has_ledger": begun.settings.ledger_path.exists(),
        "steps": _steps(begun.steps),
    }


def _about(begun: Begun, folder: Path, *, next_step: bool) -> str:
    card, ledger = begun.card, begun.settings.ledger_path.exists()
    said = [*_lines(begun.steps), "", f"ceiling: epsilon {card.ceiling_epsilon:g} at delta {card.delta:g} for each user, for life"]
    if not ledger:
        said.append(f"no ledger yet: decide about the ceiling in partner.toml, then: isthmus-client ledger create {folder}/partner.toml")
    said.append(f"fingerprint of PARTNER.json: {card.fingerprint}")
    if next_step:
        said.append("send PARTNER.json to the coordinator and read the fingerprint to them; then: isthmus-client join FOLDER JOIN.json")
    return "\n".join(said)


def _joined(joined: Joined) -> dict[str, Any]:
    card = joined.card
    return {
        "domain": joined.settings.domain,
        "server": card.server,
        "coordinator_key": card.coordinator_key,
        "fingerprint": card.fingerprint,
        "authority_until": card.ca_until.isoformat(),
        "partners": [one.partner for one in card.partners],
        "steps": _steps(joined.steps),
    }


def _about_joining(joined: Joined) -> str:
    card = joined.card
    others = ", ".join(one.partner for one in card.partners) or "nobody yet"
    said = [*_lines(joined.steps), "", f"server: {card.server}   other partners: {others}"]
    said.append(f"fingerprint of JOIN.json: {card.fingerprint}")
    said.append("compare it with the coordinator over another way than the one the file came by")
    return "\n".join(said)
