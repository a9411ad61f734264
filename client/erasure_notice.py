"""An erasure notice: what a partner who holds a passport is sent when its user was forgotten at the source.

A passport is out of its source's hands until it expires. The notice names the links whose passports are to go; it is signed by the source
and sealed to the one partner, like a passport, and padded, so that its size says little. The partner gives it to ``isthmus-client forget
--notice``. It says nothing but the link ids: the partner's own data about these people are the partner's own affair.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nacl.exceptions import CryptoError

from shared.errors import PassportError

from .durable_files import write_file
from .keys import Keys, PublicKeys, check_partner_name, seal, verify_key
from .suppression import Marker

NOTICE_SUFFIX = ".erasure"
_FORMAT = "isthmus-erasure-1"
_SIGNED_PREFIX = b"isthmus erasure notice 1\0"
_PADDED_TO = 8192
_PLAIN = b'{"notice": {'
_MOST_BYTES = 2**28
_NAME = re.compile(r"(.+)-to-(.+)-until-(\d{4}-\d\d-\d\d)-[0-9a-f]{12}\.erasure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What is asked for.

    Attributes:
        source: domain that made the passports.
        target: domain that holds them.
        link_ids: whose; empty in what `notices_in` lists.
        issued: unix seconds: passports issued until then are to go.
        expires: unix seconds at which the last of them would have expired.
        path: where it lies, None before it was written.
    """

    source: str
    target: str
    link_ids: tuple[str, ...]
    issued: int
    expires: int
    path: Path | None = None

    def canonical(self) -> bytes:
        """The bytes that are signed."""
        return _SIGNED_PREFIX + json.dumps(self.fields(), sort_keys=True, separators=(",", ":")).encode()

    def fields(self) -> dict[str, object]:
        return {
            "format": _FORMAT,
            "source": self.source,
            "target": self.target,
            "link_ids": list(self.link_ids),
            "issued": self.issued,
            "expires": self.expires,
        }


def file_name(notice: Notice, marker: Marker) -> str:
    """Names target, last day, and whom it is about by a keyed digest: the same people again give the same name, others another."""
    about = hashlib.sha256(b"".join(sorted(marker.links(notice.link_ids)))).hexdigest()[:12]
    return f"{notice.source}-to-{notice.target}-until-{datetime.fromtimestamp(notice.expires, UTC):%Y-%m-%d}-{about}.erasure"


def notices_in(folder: Path, source: str) -> Iterator[Notice]:
    """The notices of a domain that wait in a folder to be sent, by their names."""
    for path in sorted(folder.glob(f"{source}-to-*.erasure")):
        match = _NAME.fullmatch(path.name)
        if match and match[1] == source:
            day = datetime.strptime(match[3], "%Y-%m-%d").replace(tzinfo=UTC)
            yield Notice(source=source, target=match[2], link_ids=(), issued=0, expires=int(day.timestamp()), path=path)


def write_notice(path: Path, notice: Notice, *, keys: Keys, to: PublicKeys | None) -> None:
    """Writes a notice, signed; sealed to the partner where its keys are at hand (a partner who was taken off the list has none here).

    Raises:
        StorageError: no space left, or the folder cannot be written.
    """
    text = json.dumps({"notice": notice.fields(), "signature": keys.sign(notice.canonical()).hex()})
    data = text.encode().ljust(-(-len(text) // _PADDED_TO) * _PADDED_TO)
    write_file(path, seal(data, to.box_key) if to is not None else data)


def is_plain(data: bytes) -> bool:
    """Whether a notice was left unsealed. One byte would not say it: one sealed file in 256 begins with a brace too."""
    return data.startswith(_PLAIN)


def is_padded(text: bytes) -> bool:
    """Whether an opened file could be a notice, by nothing but its length and beginning."""
    return len(text) > 0 and len(text) % _PADDED_TO == 0 and text.startswith(_PLAIN)


def read_notice(path: Path, *, keys: Keys, me: str, partners: Mapping[str, PublicKeys]) -> Notice:
    """Opens a notice that a partner sent and checks all of it.

    Raises:
        PassportError: it cannot be read, is sealed to someone else, meant for someone else, or not signed by its source.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PassportError(f"'{path.name}' is too large to be an erasure notice")
        data = path.read_bytes()
    except OSError:
        raise PassportError(f"'{path.name}' cannot be read", do="Check its path and who may read it.") from None
    text = data if is_plain(data) else keys.open_sealed(data)
    try:
        values = json.loads(text)
        said, signature = dict(values["notice"]), bytes.fromhex(values["signature"])
        if said.pop("format") != _FORMAT:
            raise ValueError
        whole = all(type(said[name]) is int and 0 <= said[name] < 2**40 for name in ("issued", "expires"))
        if not whole or not all(isinstance(link_id, str) and 0 < len(link_id) <= 64 for link_id in said["link_ids"]):
            raise ValueError
        notice = Notice(**{**said, "link_ids": tuple(said["link_ids"])})
        check_partner_name(notice.source)
        check_partner_name(notice.target)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PassportError(f"'{path.name}' is not an erasure notice of this version", do="Ask the sender for it again.") from None
    if notice.target != me:
        raise PassportError("the notice is meant for another domain", do="Ask the sender for the one that names this domain.")
    if notice.source not in partners:
        raise PassportError("the notice comes from a domain that is not among the partners", do="Add the partner's public keys first.")
    try:
        verify_key(partners[notice.source]).verify(notice.canonical(), signature)
    except (CryptoError, ValueError, TypeError):
        raise PassportError(
            "the notice was not signed by its source", do="Compare the partner's public keys, then ask for the notice again."
        ) from None
    return notice
