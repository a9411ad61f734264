"""Erasure of a user: everything of theirs goes, and a keyed mark stays, so that they are never trained on again.

The order makes it safe against a crash. First the marks are on the disk (`Register.mark`): from then on every preparation leaves the users
out, whatever the partner's files hold, and no passport of theirs is taken in. All that follows finds what is to go by the marks alone, can
be done twice, and is done again by the next call until the register says that nothing is left:

notices    for each partner who holds a passport of theirs: a sealed file that asks for its erasure, put into the outbox
outbox     sealed files that hold their passport
inbox      sealed files that hold their passport; what else such a file holds is taken in first
register   passports that went out and came in
table      their rows of the way back from pseudonyms to user ids
live       what a service observed of them since the data were prepared
prepared   every prepared version of the files but one without them
serving    heads are fitted again without them, or deleted where that cannot be done now

What stays: the training state, which was trained under differential privacy only; what was released; the spent epsilon, because what it
paid for has left. Nothing of an erasure enters the ledger, the manifest or a message: those follow from the public schedule, and an erasure
is a person's. A round that has opened its data ends with them. What cannot be done from here is in `LIMITS`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from shared.config import RunConfig
from shared.errors import DataError, IsthmusError, PassportError, StateError, UsageError

from .data.histories import Histories
from .data.pseudonyms import PseudonymTable, load_or_create_key, locate
from .durable_files import storage_errors
from .erasure_notice import Notice, file_name, notices_in, read_notice, write_notice
from .live_profiles import LiveProfiles
from .partner_data import partner_data
from .passport_exchange import HALF, own_keys, partners, sent_mark, take_in
from .passport_exchange import file_name as passport_file
from .passports import contents, read_passports
from .preparation import drop_versions, prepare
from .queries import CurrentRun
from .register import Register, witness_of
from .settings import ClientSettings
from .suppression import sorted_marks

LIMITS = (
    "The source files are yours: this command never changes them. Take the rows out of them too, and out of backups and of copies of the "
    "home folder.",
    "Lists of recommendations that were written for them are yours too: delete them, and what callers of the service kept.",
    "A partner who holds a passport keeps it until it expires, unless told: send each the file named above.",
    "The training state and what was released stay: they were made under differential privacy. The epsilon that was spent stays spent.",
    "A round that is being computed at this moment ends with the data it has opened; it is the last.",
    "Deleted files may be readable from the raw disk until their blocks are used again.",
)
"""What erasure does not reach; said by the command."""

OnStep = Callable[[str], None]
REFITTED, DELETED, NOTHING = "refitted", "deleted", "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What an erasure did; for the partner's own eyes. No ids.

    Attributes:
        users: how many were named.
        new: how many of them had no mark before.
        versions: prepared versions that were deleted.
        outbox, inbox: sealed files that were deleted, by name.
        serving: `REFITTED`, `DELETED`, or `NOTHING` where there was none.
        why: why the serving state could not be fitted again, or the files not be prepared; empty where all went well.
        notices: what is to be sent to partners: all that lie in the outbox.
    """

    users: int
    new: int
    versions: int
    outbox: tuple[str, ...]
    inbox: tuple[str, ...]
    serving: str
    why: str
    notices: tuple[Notice, ...]


def forget(
    settings: ClientSettings,
    user_ids: Sequence[str],
    *,
    even_unknown: bool = False,
    name_of: Callable[[int], str] = lambda position: f"user {position + 1}",
    on_step: OnStep = lambda step: None,
) -> Forgotten:
    """Forgets users of a domain; called again, it finishes what an interrupted call began.

    Args:
        user_ids: the partner's own ids.
        even_unknown: mark users too of whom nothing is found here, so that rows that come later are left out.
        name_of: what to call the i-th user in an error, instead of the id.
        on_step: told the name of each step before it is taken.
    Raises:
        UsageError: a user is unknown; names the position. Nothing was changed.
        DataError: the file of users or links cannot be read. Nothing was changed.
        StorageError: something cannot be deleted or written; call again.
    """
    empty = next((at for at, user_id in enumerate(user_ids) if not user_id.strip()), None)
    if empty is not None or not user_ids:
        raise UsageError(f"{name_of(empty)} is empty" if empty is not None else "no user is named", do="Name at least one user id.")
    wanted = [user_id.strip() for user_id in user_ids]  # as the reader of the files has it
    with Register.of(settings) as register:
        marks = register.marker.users(wanted)
        before = register.marks()
        new = sorted_marks(marks[~before.of_users(marks)])
        if not even_unknown:
            _refuse_unknown(settings, wanted, marks, before.of_users(marks), name_of)
        links = _links_of(settings, sorted_marks(marks))
        on_step("mark")
        if len(new) or not before.of_links(links).all():
            register.mark(sorted_marks(marks), links, at=int(time.time()))
        witness_of(settings).raise_to(len(register.marks()))
    return finish(settings, users=len(wanted), new=len(new), on_step=on_step)


def take_notice(settings: ClientSettings, path: Path, *, on_step: OnStep = lambda step: None) -> Forgotten:
    """Does what a partner's notice asks for: the passports of some links that came from it go, and old files do not bring them back.

    The users here stay: they have only lost what they brought along.

    Raises:
        PassportError: the notice is damaged, not signed by its sender, or meant for somebody else.
    """
    notice = read_notice(path, keys=own_keys(settings), me=settings.domain, partners=partners(settings))
    with Register.of(settings) as register:
        on_step("mark")
        register.begin_erasure(notice.link_ids, issued_until=notice.issued, source=notice.source, at=int(time.time()))
    return finish(settings, users=0, new=0, on_step=on_step)


def finish(settings: ClientSettings, *, users: int = 0, new: int = 0, on_step: OnStep = lambda step: None) -> Forgotten:
    """Removes every trace of what is marked. Nothing happens where nothing is unfinished.

    Raises:
        StorageError: something cannot be deleted or written; call again.
    """
    outbox: list[str] = []
    inbox: list[str] = []
    versions, serving, why = 0, NOTHING, ""
    with Register.of(settings) as register:
        if register.is_unfinished():
            on_step("notices")
            _write_notices(settings, register)
            on_step("outbox")
            outbox = _clear_outbox(settings, register)
            on_step("inbox")
            inbox = _clear_inbox(settings, register)
            on_step("register")
            register.drop_erased()
            on_step("table")
            _clear_table(settings, register)
            on_step("live")
            with contextlib.closing(LiveProfiles.of(settings)) as live:
                live.forget(register.marks().users)
            config = CurrentRun(settings).config_or_none()
            on_step("prepared")
            with storage_errors("the prepared versions"):
                versions = drop_versions(settings, config)
            on_step("serving")
            serving, why = _refit(settings, config)
            on_step("finished")
            register.finished()
    notices = tuple(notices_in(settings.path(settings.passports.outbox), settings.domain))
    return Forgotten(
        users=users,
        new=new,
        versions=versions,
        outbox=tuple(outbox),
        inbox=tuple(inbox),
        serving=serving,
        why=why,
        notices=notices,
    )


def _refuse_unknown(
    settings: ClientSettings, user_ids: Sequence[str], marks: np.ndarray, known: np.ndarray, name_of: Callable[[int], str]
) -> None:
    """Somebody is known by a mark, a row of the table or of the prepared histories, or a row of the partner's files."""
    known = known.copy()
    for pseudonyms in _pseudonyms(settings):
        known |= locate(pseudonyms, marks) >= 0
    if not known.all():
        with partner_data(settings) as data:
            for found in data.user_ids():
                known |= pl.Series(user_ids, dtype=pl.String).is_in(found.implode()).to_numpy()
                if known.all():
                    return
    if not known.all():
        unknown = np.flatnonzero(~known)
        more = f", and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
        raise UsageError(
            f"{name_of(int(unknown[0]))} is not known here{more}: nothing was changed",
            do="Mend the id; or give --even-unknown, to leave such a user out should rows of theirs ever come.",
        )


def _pseudonyms(settings: ClientSettings) -> list[np.ndarray]:
    """Sorted pseudonyms of everybody that the table, a prepared version or what was observed since knows."""
    table = settings.at_home("keys") / "external_ids.parquet"
    found = [PseudonymTable.open(table).pseudonyms] if table.is_file() else []
    with contextlib.closing(LiveProfiles.of(settings)) as live:
        found.append(live.pseudonyms())
    for folder in _versions(settings):
        with contextlib.suppress(DataError):  # half deleted: an earlier call was interrupted
            found.append(Histories.open(folder / "everyone").pseudonyms)
    return found


def _versions(settings: ClientSettings) -> list[Path]:
    return sorted(path.parent for path in settings.at_home("prepared").glob("*/people.npz"))


def _links_of(settings: ClientSettings, marks: np.ndarray) -> list[str]:
    """Link ids of some users with any partner: by the partner's file, by what was prepared from earlier ones, by what was told since."""
    with contextlib.closing(LiveProfiles.of(settings)) as live:
        found = {link_id for links in live.links_of_pseudonyms(marks) for link_id in links.values()}
    with partner_data(settings) as data:
        links = data.links_if_there(load_or_create_key(settings.at_home("keys") / "pseudonyms.key"))
    for people in links.by_partner.values() if links is not None else ():
        found |= {link_id for link_id in people.link_of(marks) if link_id is not None}
    for folder in _versions(settings):
        with contextlib.suppress(DataError, OSError, ValueError, KeyError, zipfile.BadZipFile):  # half written, or half deleted
            rows = locate(Histories.open(folder / "everyone").pseudonyms, marks)
            with np.load(folder / "people.npz") as arrays:
                for name in [name for name in arrays if name.startswith("rows/")]:
                    there = np.isin(arrays[name], rows[rows >= 0])
                    found |= set(arrays["link_ids/" + name.removeprefix("rows/")][there].tolist())
    return sorted(found)


def _write_notices(settings: ClientSettings, register: Register) -> None:
    """For each partner who holds a passport that is to go and has not expired; before the register forgets who does."""
    now = int(time.time())
    known = partners(settings)
    for target, gone in register.erased_out().items():
        still = [link_id for link_id, expires in zip(gone.link_ids, gone.expires, strict=True) if expires > now]
        if still:
            notice = Notice(source=settings.domain, target=target, link_ids=tuple(still), issued=now, expires=max(gone.expires))
            name = file_name(notice, register.marker)
            write_notice(settings.path(settings.passports.outbox) / name, notice, keys=own_keys(settings), to=known.get(target))


def _clear_outbox(settings: ClientSettings, register: Register) -> list[str]:
    """A file that holds an erased passport cannot be opened here, so it goes as a whole; it can be exported again without it."""
    gone = []
    for target in register.erased_out():
        path = settings.path(settings.passports.outbox) / passport_file(settings.domain, target)
        with storage_errors(f"'{path.name}'"):
            sent_mark(settings, target).unlink(missing_ok=True)
            if path.is_file():
                path.unlink()
                gone.append(path.name)
    return gone


def _clear_inbox(settings: ClientSettings, register: Register) -> list[str]:
    """Files with an erased passport; the passports of others in them are taken in before, where the run in hand can use them."""
    gone = []
    keys, run, inbox = own_keys(settings), CurrentRun(settings), settings.path(settings.passports.inbox)
    half = inbox.glob(f"{HALF}*")  # a service that was killed left it; one that lives has lost nothing when its file is gone
    for path in sorted([*inbox.glob(passport_file("*", settings.domain)), *half]):
        try:
            statement, link_ids = contents(read_passports(path), keys)
        except PassportError:
            continue  # not for these keys, or damaged: nobody here can read it
        if register.erased_among(link_ids, source=statement.source, issued=statement.issued).any():
            with contextlib.suppress(PassportError, StateError):
                take_in(settings, run.space_version(), path, dimension=run.config().model.dimension)
            with storage_errors(f"'{path.name}'"):
                path.unlink(missing_ok=True)
            gone.append(path.name)
    return gone


def _clear_table(settings: ClientSettings, register: Register) -> None:
    path = settings.at_home("keys") / "external_ids.parquet"
    if path.is_file():
        PseudonymTable.open(path).forget(register.marks().users).save(path)


def _refit(settings: ClientSettings, config: RunConfig | None) -> tuple[str, str]:
    """Prepares the files without the users and fits the serving heads again; or deletes the serving state and says why."""
    folder, doomed = settings.at_home("serving"), settings.at_home(".serving-deleted")
    with storage_errors("the serving state"):
        if doomed.exists():
            shutil.rmtree(doomed)  # an earlier call was interrupted while it deleted
    why = ""
    try:
        if config is not None:
            prepare(settings, config)
            from .delivery import refit  # torch: only where there is something to fit

            return (REFITTED, "") if refit(settings) else (NOTHING, "")
    except IsthmusError as error:
        why = error.what
    if not folder.exists():
        return NOTHING, why
    with storage_errors("the serving state"):
        os.rename(folder, doomed)  # out of sight first: half a state would be read as a damaged one
        shutil.rmtree(doomed)
    return DELETED, why or "no run has greeted this client yet"
