"""A sealed file of passports that a program of the partner hands to the service, and whose passport of it is meant.

All of it is checked by the code that opens files of the inbox; nothing is kept of a file that is refused.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass

from shared.errors import UsageError

from .data.pseudonyms import load_or_create_key, pseudonym
from .durable_files import write_file
from .key_rotation import own_keys
from .live_profiles import LiveProfiles
from .partner_data import partner_data
from .passport_exchange import HALF, take_in
from .passports import contents
from .serving_errors import NothingNew
from .settings import ClientSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What a file brought.

    Attributes:
        source: the domain that made it.
        passports: how many are new or renewed.
        expires: unix seconds.
    """

    source: str
    passports: int
    expires: int


def accept(
    settings: ClientSettings,
    live: LiveProfiles,
    data: bytes,
    *,
    space_version: str,
    dimension: int,
    user: str | None = None,
    link_id: str | None = None,
) -> Accepted:
    """Opens a sealed file and books its passports.

    Args:
        data: the bytes of the file.
        space_version, dimension: of the interest space of what recommends.
        user, link_id: whose passport one of them is, where the partner's file of links does not say so yet; both or neither.
    Raises:
        PassportError: the file is damaged, forged, expired, or meant for somebody else.
        UsageError: the file holds no passport of that link, or the link is another user's; nothing was kept.
        NothingNew: all in it was taken in before, is older than what is here, or was erased.
        ForgottenUser, StorageError, StateError: as `LiveProfiles.link`.
    """
    if (user is None) != (link_id is None):
        raise UsageError("'user' and 'link_id' are given together, or neither is")
    statement, link_ids = contents(data, own_keys(settings))
    if user is not None and link_id is not None:
        if link_id not in link_ids:
            raise UsageError("the file holds no passport for 'link_id'", do="Compare the token with the one that the other side holds.")
        live.check_link(user, statement.source, link_id)
        _refuse_anothers(settings, user, statement.source, link_id)
    half = settings.path(settings.passports.inbox) / f"{HALF}{secrets.token_hex(8)}"
    try:
        write_file(half, data)
        booked = take_in(settings, space_version, half, dimension=dimension)
    finally:
        half.unlink(missing_ok=True)
    linked = live.link(user, statement.source, link_id) if user is not None and link_id is not None else False
    if link_ids and not booked and not linked:
        raise NothingNew("nothing in the file is new: it was taken in before, is older than what is here, or was erased")
    return Accepted(source=statement.source, passports=booked, expires=statement.expires)


def _refuse_anothers(settings: ClientSettings, user: str, source: str, link_id: str) -> None:
    """The partner's file of links wins: what it says of one user, nobody else takes along."""
    key = load_or_create_key(settings.at_home("keys") / "pseudonyms.key")
    with partner_data(settings) as data:
        links = data.links_if_there(key)
    people = links.with_partner(source) if links is not None and source in links.partners else None
    if people is not None and link_id in people.link_ids:
        owner = people.pseudonyms[people.link_ids.index(link_id)]
        if bytes(owner) != bytes(pseudonym(key, [user])[0]):
            raise UsageError("'link_id' is another user's", do="A link belongs to one user, and the file of links says to whom.")


def sweep(settings: ClientSettings) -> None:
    """Removes what a killed service left."""
    for path in settings.path(settings.passports.inbox).glob(f".*{HALF[1:]}*"):
        with contextlib.suppress(OSError):
            path.unlink()
