"""`isthmus-client forget`: a user and everything of theirs, for good.

Heavy libraries are imported inside the command: ``--help`` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import UsageError

from .answers import AsJson, Debug, Settings, answer, day, libraries_on_stderr, read_settings

if TYPE_CHECKING:
    from ..forgetting import Forgotten


def forget(
    partner_toml: Settings,
    user: Annotated[list[str] | None, typer.Argument(help="Your own ids of the users.", metavar="USER...", show_default=False)] = None,
    users: Annotated[
        Path | None, typer.Option(help="A file with one id a line; it keeps ids out of the shell's history.", metavar="FILE")
    ] = None,
    notice: Annotated[
        Path | None, typer.Option(help="An erasure notice that a partner sent: passports from it that are to go.", metavar="FILE")
    ] = None,
    even_unknown: Annotated[
        bool, typer.Option("--even-unknown", help="Mark users too of whom nothing is found here, should rows of theirs ever come.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Forget users: their histories, passports in and out, caches; what recommends is fitted again without them.

    A keyed mark stays, so that they are never trained on again, even if your files keep their rows. Spent epsilon stays spent: what it paid
    for has left. The ledger does not change, and no message says that anybody was forgotten.

    A call that was interrupted is finished by the next one, also by one that names nobody. Call it before you take the rows out of your
    files: the file of links says which passports are theirs.

    \b
    Examples:
      isthmus-client forget partner.toml u-1024
      isthmus-client forget partner.toml --users leaving.txt
      isthmus-client forget partner.toml --notice books-to-films-until-2027-05-22-0123456789ab.erasure
    """
    del debug
    given = list(user or [])
    if sum((bool(given), users is not None, notice is not None)) > 1:
        raise UsageError("users are named in one way at a time", do="Give ids, or --users FILE, or --notice FILE.")
    settings = read_settings(partner_toml)
    lines = _lines(users) if users is not None else []
    with libraries_on_stderr():
        from ..forgetting import finish, take_notice
        from ..forgetting import forget as forget_users

        if notice is not None:
            done = take_notice(settings, notice)
        elif lines:
            named = [name for _, name in lines]
            done = forget_users(settings, named, even_unknown=even_unknown, name_of=lambda at: f"{users}: line {lines[at][0]:,}")
        elif given:
            done = forget_users(settings, given, even_unknown=even_unknown, name_of=lambda at: f"user {at + 1} of {len(given)}")
        else:
            done = finish(settings)
    answer(as_json, _document(settings.domain, done), _words(done))


def _lines(path: Path) -> list[tuple[int, str]]:
    """Ids with the numbers of their lines; blank lines are passed over."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text in UTF-8", do="Write one id a line.") from None
    except OSError:
        raise UsageError(f"{path} cannot be read", do="Check the path and who may read it.") from None
    found = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not found:
        raise UsageError(f"{path} names nobody", do="Write one id a line.")
    return found


def _document(domain: str, done: Forgotten) -> dict[str, Any]:
    from ..forgetting import LIMITS

    return {
        "domain": domain,
        "users": done.users,
        "new": done.new,
        "prepared_versions_deleted": done.versions,
        "outbox_deleted": list(done.outbox),
        "inbox_deleted": list(done.inbox),
        "serving": done.serving,
        "why": done.why,
        "tell": [{"partner": each.target, "until": day(each.expires), "file": str(each.path)} for each in done.notices],
        "not_done": list(LIMITS),
    }


def _words(done: Forgotten) -> str:
    from ..forgetting import DELETED, LIMITS, REFITTED

    said = [f"forgotten: {done.users:,} users, {done.new:,} of them new"] if done.users else []
    said += [f"deleted from the outbox: {name} (export it again for the others)" for name in done.outbox]
    said += [f"deleted from the inbox: {name} (what else it held was taken in, where this run can use it)" for name in done.inbox]
    if done.versions:
        said.append(f"prepared versions deleted: {done.versions}")
    if done.serving == REFITTED:
        said.append("what recommends was fitted again without them")
    elif done.serving == DELETED:
        said.append(f"what recommends was deleted, because it cannot be fitted now: {done.why}")
    elif done.why:
        said.append(f"the files cannot be prepared now: {done.why}")
    if done.notices:
        said += ["", "these partners hold a passport of somebody forgotten; send each its file, which only it can open:"]
        said += [f"  {each.target}, until {day(each.expires)}: {each.path}" for each in done.notices]
        said.append("  where the partner has a server: isthmus-client passport send PARTNER_TOML --to PARTNER")
        said.append("  by hand: the partner runs isthmus-client forget PARTNER_TOML --notice FILE; delete the file when it was sent")
    return "\n".join([*(said or ["nothing was left to be done"]), "", "what this cannot do:", *(f"  {line}" for line in LIMITS)])
