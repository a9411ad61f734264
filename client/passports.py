"""Passports: a linked user's interest vector, handed to exactly one partner.

A passport says where in the interest space the source sees a linked user. It goes from partner to partner as a file, never through the
coordinator: sealed to the target's key, each record signed by the source, and padded to a public number of records, so that the size of a
file says little about how many users are linked.

A file, after the seal is broken::

    16 bytes   "isthmus-passport"
     2 bytes   version of this layout
     2 bytes   length of the statement
  1004 bytes   the statement as JSON, padded with zeros
     rest      2^k records of 64 bytes link id, 4 d bytes vector, 64 bytes signature; those after the last passport are zeros

A signature (Ed25519) covers the statement without its count, the link id and the vector, so a record is bound to its source, its one
target, the space, the encoder, its issue and its expiry.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nacl.exceptions import CryptoError

from shared.errors import PassportError

from .durable_files import write_file
from .keys import Keys, PublicKeys, check_partner_name, seal, verify_key

_MAGIC = b"isthmus-passport"
_LAYOUT = 1
_HEAD_BYTES = 1024
_LINK_BYTES = 64
_SIGNATURE_BYTES = 64
_SIGNED_PREFIX = b"isthmus passport 1\0"
_MOST_RECORDS = 2**24
_MOST_FILE_BYTES = 2**31
_CLOCK_SKEW_S = 3600
_ASK_AGAIN = "Ask the sender to export it again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What all passports of a file have in common.

    Args:
        source: domain whose data made the vectors.
        target: the one domain that may use them.
        space_version: the interest space of the vectors.
        encoder_version: the encoder that made them.
        dimension: length of a vector.
        issued: unix seconds.
        expires: unix seconds; from then on it is refused.
    """

    source: str
    target: str
    space_version: str
    encoder_version: str
    dimension: int
    issued: int
    expires: int

    def __post_init__(self) -> None:
        check_partner_name(self.source)
        check_partner_name(self.target)
        if self.source == self.target:
            raise PassportError("a passport goes to another domain, not to its own source")
        for field, text in (("space_version", self.space_version), ("encoder_version", self.encoder_version)):
            if not text or len(text) > 128 or not text.isascii() or not text.isprintable():
                raise PassportError(f"'{field}' of a passport is 1 to 128 printable characters")
        for field, value, low, high in (
            ("dimension", self.dimension, 1, 4096),
            ("issued", self.issued, 0, 2**40),
            ("expires", self.expires, 0, 2**40),
        ):
            if not low <= value <= high:
                raise PassportError(f"'{field}' of a passport is outside {low} to {high}")
        if self.expires <= self.issued:
            raise PassportError("a passport expires after it was issued")

    def canonical(self) -> bytes:
        """The bytes that are signed, before link id and vector."""
        return _SIGNED_PREFIX + _json({name: getattr(self, name) for name in self.__slots__}) + b"\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedPassports:
    """Passports whose seal, signatures, dates and versions hold.

    Args:
        source: the domain that made them.
        link_ids: n tokens, in the order of the file.
        vectors: (n, d) float32, finite.
        space_version, encoder_version: what they were made with.
        issued, expires: unix seconds.
    """

    source: str
    link_ids: list[str]
    vectors: np.ndarray
    space_version: str
    encoder_version: str
    issued: int
    expires: int


def export_passports(
    *,
    keys: Keys,
    source: str,
    target: PublicKeys,
    link_ids: Sequence[str],
    vectors: np.ndarray,
    space_version: str,
    encoder_version: str,
    issued: int,
    expires: int,
    pad_to: int = 1024,
) -> bytes:
    """Signs, pads and seals the passports for one target.

    Args:
        keys: the source's private keys.
        source: the source's domain name.
        target: the public keys of the one partner that may open the file.
        link_ids: n tokens both sides hold; n = 0 makes a file too, for whether there is one should say nothing.
        vectors: (n, d) float32.
        space_version, encoder_version: what the vectors were made with.
        issued, expires: unix seconds.
        pad_to: public power of two: the fewest records of a file; more are padded to the next power of two.
    Returns:
        The bytes of the file, for `write_passports`.
    Raises:
        PassportError: naming the row of a link id or vector that cannot be used.
    """
    array = np.ascontiguousarray(vectors, dtype="<f4")
    if array.ndim != 2 or len(array) != len(link_ids):
        raise PassportError("passports need one vector for each link id, all of one length")
    if pad_to < 1 or pad_to & (pad_to - 1) or pad_to > _MOST_RECORDS or len(link_ids) > _MOST_RECORDS:
        raise PassportError(f"'pad_to' and the number of passports are at most {_MOST_RECORDS}, and 'pad_to' is a power of two")
    statement = Statement(
        source=source,
        target=target.partner,
        space_version=space_version,
        encoder_version=encoder_version,
        dimension=array.shape[1],
        issued=issued,
        expires=expires,
    )
    _check_vectors(array)
    records = np.zeros(max(pad_to, 1 << max(0, len(link_ids) - 1).bit_length()), dtype=_record(statement.dimension))
    records["link_id"][: len(link_ids)] = _encode_links(link_ids)
    records["vector"][: len(link_ids)] = array
    _sign(records[: len(link_ids)], statement, keys)
    return seal(_head(statement, len(link_ids)) + records.tobytes(), target.box_key)


def import_passports(
    data: bytes,
    *,
    keys: Keys,
    me: str,
    partners: Mapping[str, PublicKeys],
    space_version: str,
    now: int,
    dimension: int | None = None,
) -> ImportedPassports:
    """Opens a file of passports and checks all of it; one bad record refuses the whole file.

    Args:
        data: the bytes of the file.
        keys: this partner's private keys.
        me: this partner's domain name.
        partners: public keys of the partners whose passports are wanted, by domain name.
        space_version: the interest space in use.
        now: unix seconds.
        dimension: length a vector must have; None takes what the space version stands for on trust.
    Raises:
        PassportError: damaged, sealed to someone else, forged, expired, of another space, doubled or with a vector that is not finite.
    """
    plain = keys.open_sealed(data)
    statement, count = _parse_head(plain)
    _check_statement(statement, partners, me=me, space_version=space_version, now=now, dimension=dimension)
    record = _record(statement.dimension)
    body = _body(plain, statement, count)
    records = np.frombuffer(body, dtype=record)
    if np.any(np.frombuffer(body[count * record.itemsize :], dtype=np.uint8)):
        raise PassportError("the passport file holds something where it should be empty", do=_ASK_AGAIN)
    records = records[:count]
    _verify(records, statement, partners[statement.source])
    vectors = records["vector"].astype(np.float32)
    _check_vectors(vectors)
    return ImportedPassports(
        source=statement.source,
        link_ids=_decode_links(records["link_id"]),
        vectors=vectors,
        space_version=statement.space_version,
        encoder_version=statement.encoder_version,
        issued=statement.issued,
        expires=statement.expires,
    )


def statement_of(data: bytes, *, keys: Keys, me: str, source: PublicKeys, now: int) -> Statement:
    """What a file from one partner says of itself, before it is imported.

    No record is looked at: how long this takes shows nothing of how many users are linked.

    Raises:
        PassportError: sealed to or meant for someone else, from another source, expired, or of a length that no file has.
    """
    plain = keys.open_sealed(data)
    statement, count = _parse_head(plain)
    _check_statement(statement, {source.partner: source}, me=me, space_version=None, now=now, dimension=None)
    _body(plain, statement, count)
    return statement


def contents(data: bytes, keys: Keys) -> tuple[Statement, list[str]]:
    """What a file says it holds, its link ids included, also where it has expired or belongs to another space. Nothing is verified.

    Raises:
        PassportError: it was sealed to another key, or is damaged.
    """
    plain = keys.open_sealed(data)
    statement, count = _parse_head(plain)
    record = _record(statement.dimension)
    if len(plain) < _HEAD_BYTES + count * record.itemsize:
        raise PassportError("the passport file is cut short or too long", do=_ASK_AGAIN)
    return statement, _decode_links(np.frombuffer(plain, dtype=record, count=count, offset=_HEAD_BYTES)["link_id"])


def write_passports(path: Path, data: bytes) -> None:
    """Puts a sealed file where the partner fetches it: in one step, readable by its owner only.

    Raises:
        StorageError: no space left, or the folder cannot be written.
    """
    write_file(path, data)


def read_passports(path: Path) -> bytes:
    """The bytes of a file that a partner sent.

    Raises:
        PassportError: there is no such file, it cannot be read, or it is larger than any passport file.
    """
    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise PassportError(f"'{path.name}' is too large to be a passport file")
        return path.read_bytes()
    except OSError:
        raise PassportError(f"'{path.name}' cannot be read", do="Check its path and who may read it.") from None


def array_version(arrays: Mapping[str, np.ndarray]) -> str:
    """A short name for a set of arrays, such as an encoder's parameters: 16 hex digits of a digest over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(_json([name, little.dtype.str, list(little.shape)]) + little.tobytes())
    return digest.hexdigest()[:16]


def _record(dimension: int) -> np.dtype[np.void]:
    return np.dtype([("link_id", f"S{_LINK_BYTES}"), ("vector", "<f4", (dimension,)), ("signature", "u1", (_SIGNATURE_BYTES,))])


def _head(statement: Statement, count: int) -> bytes:
    text = _json({**{name: getattr(statement, name) for name in statement.__slots__}, "count": count})
    head = _MAGIC + struct.pack("<HH", _LAYOUT, len(text)) + text
    return head.ljust(_HEAD_BYTES, b"\0")


def _parse_head(plain: bytes) -> tuple[Statement, int]:
    malformed = PassportError("the file is not a passport file of this version", do=_ASK_AGAIN)
    if len(plain) < _HEAD_BYTES or not plain.startswith(_MAGIC):
        raise malformed
    layout, length = struct.unpack_from("<HH", plain, len(_MAGIC))
    start = len(_MAGIC) + 4
    if layout != _LAYOUT or start + length > _HEAD_BYTES or any(plain[start + length : _HEAD_BYTES]):
        raise malformed
    try:
        values = json.loads(plain[start : start + length])
    except (ValueError, RecursionError):
        raise malformed from None
    texts, numbers = ("source", "target", "space_version", "encoder_version"), ("dimension", "issued", "expires", "count")
    if not isinstance(values, dict) or set(values) != {*texts, *numbers}:
        raise malformed
    if any(type(values[name]) is not str for name in texts) or any(type(values[name]) is not int for name in numbers):
        raise malformed
    count = values.pop("count")
    if not 0 <= count <= _MOST_RECORDS:
        raise malformed
    return Statement(**values), count


def _body(plain: bytes, statement: Statement, count: int) -> memoryview:
    """All records, those of the padding included: a power of two of them."""
    body = memoryview(plain)[_HEAD_BYTES:]
    bucket, rest = divmod(len(body), _record(statement.dimension).itemsize)
    if rest or bucket < 1 or bucket & (bucket - 1) or count > bucket:
        raise PassportError("the passport file is cut short or too long", do=_ASK_AGAIN)
    return body


def _check_statement(
    statement: Statement, partners: Mapping[str, PublicKeys], *, me: str, space_version: str | None, now: int, dimension: int | None
) -> None:
    if statement.target != me:
        raise PassportError(
            "the passports were made for another domain", do="A passport serves exactly one target; ask its source for one of your own."
        )
    if statement.source not in partners or partners[statement.source].partner != statement.source:
        raise PassportError("the passports come from a domain that is not among the partners", do="Add the partner's public keys first.")
    if now >= statement.expires:
        raise PassportError("the passports have expired", do=_ASK_AGAIN)
    if statement.issued > now + _CLOCK_SKEW_S:
        raise PassportError("the passports were issued in the future", do="Compare the clocks of both partners.")
    if space_version is not None and statement.space_version != space_version:
        raise PassportError(
            "the passports belong to another version of the interest space", do="Ask the sender to export them for this run's space."
        )
    if dimension is not None and statement.dimension != dimension:
        raise PassportError("the passports have vectors of another length than the interest space", do=_ASK_AGAIN)


def _sign(records: np.ndarray, statement: Statement, keys: Keys) -> None:
    prefix, size = statement.canonical(), _LINK_BYTES + 4 * statement.dimension
    raw, step = records.tobytes(), records.dtype.itemsize
    signed = (keys.sign(prefix + raw[at : at + size]) for at in range(0, len(raw), step))
    records["signature"] = np.frombuffer(b"".join(signed), dtype=np.uint8).reshape(len(records), _SIGNATURE_BYTES)


def _verify(records: np.ndarray, statement: Statement, source: PublicKeys) -> None:
    prefix, size = statement.canonical(), _LINK_BYTES + 4 * statement.dimension
    key = verify_key(source)
    raw, step = records.tobytes(), records.dtype.itemsize
    for row, at in enumerate(range(0, len(raw), step)):
        try:
            key.verify(prefix + raw[at : at + size], raw[at + size : at + step])
        except CryptoError:
            raise PassportError(
                f"record {row + 1}: the signature is not its source's", do="Compare the partner's public keys, then ask for the file again."
            ) from None


def _check_vectors(vectors: np.ndarray) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise PassportError(f"record {int(np.argmin(finite)) + 1}: the vector is not finite")


def _encode_links(link_ids: Sequence[str]) -> np.ndarray:
    first_row: dict[bytes, int] = {}
    for row, link_id in enumerate(link_ids, start=1):
        try:
            encoded = link_id.encode()
        except UnicodeEncodeError:
            encoded = b""
        if not encoded or len(encoded) > _LINK_BYTES or b"\0" in encoded:
            raise PassportError(f"record {row}: a link id is 1 to {_LINK_BYTES} bytes of text")
        if first_row.setdefault(encoded, row) != row:
            raise PassportError(f"record {row}: the link id is the one of record {first_row[encoded]}", do="Each link has one passport.")
    return np.array(list(first_row), dtype=f"S{_LINK_BYTES}")


def _decode_links(encoded: np.ndarray) -> list[str]:
    try:
        link_ids = [link.decode() for link in encoded.tolist()]
    except UnicodeDecodeError:
        raise PassportError("a link id is not text", do=_ASK_AGAIN) from None
    _encode_links(link_ids)
    return link_ids


def _json(values: object) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
