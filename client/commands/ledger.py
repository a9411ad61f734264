"""`isthmus-client ledger`: a domain's privacy ledger, for life. Made, looked at, handed over, its ceiling raised, its keys changed.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import UsageError

from .answers import AsJson, Debug, Settings, answer, epilog, libraries_on_stderr, read_settings
from .ledger_words import RESTARTED, ROTATED, document, restarted, rotated, table

if TYPE_CHECKING:
    from shared.privacy.receipts import SignedReceipt

EPILOG = epilog(0, 1, 2, 3, 6, 7, 8, 9, 12, 18, 19, 20, 21, 22, 23, 24, 25, 130)
ledger = typer.Typer(
    help="The ledger of what was promised and what was spent: one for a domain's whole life.", epilog=EPILOG, no_args_is_help=True
)

By = Annotated[str, typer.Option(help="Who decided; shown in every report.", metavar="NAME")]
Why = Annotated[str, typer.Option(help="The reason; shown in every report.", metavar="TEXT")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@ledger.command(epilog=EPILOG)
def create(partner_toml: Settings, as_json: AsJson = False, debug: Debug = False) -> None:
    """Make this domain's keys, where there are none, and its ledger.

    The ceiling, its delta and who set it are taken from partner.toml, section [ceiling], now and never again: from here on the ledger
    itself says what may be spent. Every event in it is signed with the key that stays in the home folder. Keep that folder on a local disk.

    \b
    Example:
      isthmus-client ledger create partner.toml
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..ledger_life import create as make

        public = make(settings)
    ceiling, path = settings.ceiling, settings.ledger_path
    record = {
        "domain": settings.domain,
        "file": str(path),
        "ceiling_epsilon": ceiling.epsilon,
        "delta": ceiling.delta,
        "set_by": ceiling.set_by,
        "verify_key": public.verify_key,
        "fingerprint": public.fingerprint,
    }
    words = (
        f"ledger of '{settings.domain}': {path}\nceiling: epsilon {ceiling.epsilon:g} at delta {ceiling.delta:g} for each user, for life"
    )
    answer(as_json, record, f"{words}\nfingerprint of the keys: {public.fingerprint}")


@ledger.command(epilog=EPILOG)
def show(partner_toml: Settings, as_json: AsJson = False, debug: Debug = False) -> None:
    """Say what was promised, what is spent and reserved, by which runs, under which keys, and when the code was last tested.

    Reads beside a run that is under way, and changes nothing. It checks the chain and the last signature; isthmus-audit checks all of it.

    \b
    Examples:
      isthmus-client ledger show partner.toml
      isthmus-client ledger show partner.toml --json
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..ledger_life import overview

        found = overview(settings)
    answer(as_json, document(found), table(found))


@ledger.command(epilog=EPILOG)
def export(
    partner_toml: Settings,
    out: Annotated[Path, typer.Option(help="The file to make. Never one that exists.", metavar="FILE")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Hand the ledger over: one file with a signed head, the public keys beside it, and a text that says how to check it.

    A bare copy of a ledger in use may miss its newest events; this one lacks nothing and needs no file beside it. The files are readable by
    you alone until you hand them on. Processes that read the ledger do not matter; one that writes to it has to end first.

    \b
    Example:
      isthmus-client ledger export partner.toml --out books-ledger.sqlite
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..ledger_life import export as hand_over

        made = hand_over(settings, out)
    record = {
        "domain": settings.domain,
        "file": str(made.ledger),
        "keys": str(made.keys),
        "text": str(made.words),
        "events": made.head_seq,
        "head_hash": made.head_hash,
    }
    words = f"{made.head_seq:,} events of '{settings.domain}': {made.ledger}\npublic keys: {made.keys}\nwhat to do with them: {made.words}"
    answer(as_json, record, words)


@ledger.command("raise-ceiling", epilog=EPILOG)
def raise_ceiling(
    partner_toml: Settings,
    epsilon: Annotated[float, typer.Option(help="The new ceiling, for the whole life.", metavar="E")],
    by: By,
    why: Why,
    yes: Yes = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Permit more than the ledger does: a signed event with a name and a reason, for ever.

    A raised ceiling cannot be lowered again, and every later report says WITHIN RAISED BUDGET. From here on the Renyi filter decides, which
    counts what was spent higher than before: the room that is gained is less than the difference of the ceilings.

    \b
    Example:
      isthmus-client ledger raise-ceiling partner.toml --epsilon 10 --by "A. Officer" --why "a second season, agreed on with the board"
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..ledger_life import MEANS_RAISED, check_above, check_words, overview
        from ..ledger_life import raise_ceiling as permit

        check_words(by=by, why=why)
        before = overview(settings)
        check_above(before.ceiling, epsilon)
        if not yes:
            _confirm(f"{MEANS_RAISED}\nRaise the ceiling of '{before.domain}' from epsilon {before.ceiling:g} to {epsilon:g}?")
        permit(settings, epsilon, by=by, why=why)
        after = overview(settings)
    record = {**document(after), "previous_epsilon": before.ceiling, "means": MEANS_RAISED}
    words = f"ceiling of '{after.domain}': {before.ceiling:g} before, {after.ceiling:g} now, {after.remaining:.2f} of it not reserved"
    answer(as_json, record, f"{words}\n{MEANS_RAISED}")


@ledger.command("rotate-key", epilog=EPILOG)
def rotate_key(
    partner_toml: Settings,
    out: Annotated[
        Path | None, typer.Option(help="Where the new public keys are written; DOMAIN.keys.json here when left out.", metavar="FILE")
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Change this domain's keys: the old key signs the new one in the ledger, then the new ones take its place.

    The old private keys are not kept. The ledger stays one ledger: what the old key signed stays signed, and audits take the new key. Cut
    off at any moment, the next command finishes or undoes the change; neither key is lost.

    Passports that were sealed to the old keys can no longer be opened: import what lies in the inbox first. Partners need the new public
    file before they seal or check passports again, and so does whoever audits. The coordinator drops this domain's replies until it writes
    the new verify_key into its list of partners.

    \b
    Example:
      isthmus-client ledger rotate-key partner.toml --out books.keys.json
    """
    del debug
    settings = read_settings(partner_toml)
    path = out or Path(f"{settings.domain}.keys.json")
    with libraries_on_stderr():
        from ..key_rotation import rotate
        from ..public_keys import check_place, write_public

        check_place(path, settings.domain)
        if not yes:
            _confirm(f"{ROTATED}\nChange the keys of '{settings.domain}'?")
        changed = rotate(settings)
        write_public(path, changed.new)
    answer(as_json, *rotated(settings.domain, path, changed))


@ledger.command(epilog=EPILOG)
def restart(
    partner_toml: Settings,
    epsilon: Annotated[float, typer.Option(help="The new ceiling for the whole life, with what is booked.", metavar="E")],
    by: By,
    why: Why,
    receipt: Annotated[
        Path | None, typer.Option(help="The receipts file of the coordinator, with its last receipt of this domain.", metavar="FILE")
    ] = None,
    no_receipt: Annotated[bool, typer.Option("--no-receipt", help="The coordinator holds no receipt of this domain.")] = False,
    booked_epsilon: Annotated[
        float | None,
        typer.Option(help="The whole ceiling of the lost ledger, raises included; may be left out where its remains say it.", metavar="E"),
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Begin a new ledger where the old one is lost, broken, or older than the coordinator's receipt.

    Nobody can prove what a lost ledger had spent, so its whole ceiling counts as spent. The new ledger cites the coordinator's last
    receipt, and needs a ceiling above what is booked; every report says WITHIN RAISED BUDGET. The remains of the old ledger are moved aside
    to NAME.lost-1, never deleted. An intact ledger is never replaced. Cut off at any moment: give the same command again.

    \b
    Example:
      isthmus-client ledger restart partner.toml --receipt receipts.json --booked-epsilon 8 --epsilon 12 --by "A. Officer" --why "disk died"
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..ledger_restart import restart as begin_again

        cited = _receipt(receipt, no_receipt, settings.domain)
        if not yes:
            _confirm(f"{RESTARTED}\nBegin a new ledger for '{settings.domain}', with a ceiling of epsilon {epsilon:g}?")
        made = begin_again(settings, cited, booked_epsilon=booked_epsilon, epsilon=epsilon, by=by, why=why)
    answer(as_json, *restarted(settings.domain, settings.ledger_path, made))


@ledger.command(epilog=EPILOG)
def upgrade(
    partner_toml: Settings,
    why: Annotated[str, typer.Option(help="The reason; kept in the ledger.", metavar="TEXT")] = "a newer version of isthmus",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Bring a ledger of format 1 to format 2: from here on every event is signed.

    What stands in it already stays as it is, unsigned; the event of the change names the key and, by the chain, vouches for what stands
    before it. A ledger of this format is left alone.

    \b
    Example:
      isthmus-client ledger upgrade partner.toml
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..ledger_life import overview
        from ..ledger_life import upgrade as bring

        changed = bring(settings, why=why)
        found = overview(settings)
    words = f"ledger of '{found.domain}': " + ("signed from here on" if changed else "it is of this format already; nothing was changed")
    answer(as_json, {**document(found), "changed": changed}, words)


def _confirm(question: str) -> None:
    """Asks on standard error. Raises UsageError where the answer is no, or nobody is there to give one."""
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        agreed = False
    if not agreed:
        raise UsageError("not confirmed: nothing was changed", do="Answer y, or add --yes.")


def _receipt(file: Path | None, none: bool, domain: str) -> SignedReceipt | None:
    """The receipt to cite, checked.

    Raises:
        ForeignReceipts: the file holds none of this domain.
        AuditError: it cannot be read, or the receipt was changed.
    """
    from shared.errors import AuditError, ForeignReceipts
    from shared.privacy.receipts import read_receipts

    if (file is None) != none:
        do = "Ask the coordinator for its receipts file. Use --no-receipt only where it holds no receipt of this domain."
        raise UsageError("a new ledger cites the coordinator's last receipt: name one of --receipt and --no-receipt", do=do)
    if file is None:
        return None
    receipts = read_receipts(file)
    if domain not in receipts:
        do = "Ask the coordinator for the right file, or for the word that it holds none; then use --no-receipt."
        raise ForeignReceipts(f"{file} holds no receipt of domain '{domain}'", do=do)
    if not receipts[domain].holds():
        raise AuditError(f"the receipt of '{domain}' in {file} does not match its signature", do="Ask the coordinator for it again.")
    return receipts[domain]
