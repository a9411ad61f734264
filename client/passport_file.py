"""How a file of passports is laid out, once its seal is broken::

    16 bytes   "isthmus-passport"
     2 bytes   version of this layout: 1, or 2 where the passports are private
     2 bytes   length of the statement
  1004 bytes   the statement as JSON, padded with zeros
  4(D+1)k      layout 2 only: the public coordinates of private passports (`client.public_projection`)
     rest      2^r records of 64 bytes link id, 4 d bytes vector, 64 bytes signature; those after the last passport are zeros

A signature (Ed25519) covers the statement without its count, the link id and the vector, so a record is bound to its source, its one
target, the space, the encoder, its issue and its expiry; a private one also to its epsilon and its public coordinates.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.errors import PassportError

from .keys import check_partner_name
from .public_projection import PrivateTerms, Projection

LINK_BYTES = 64
SIGNATURE_BYTES = 64
MOST_RECORDS = 2**24
ASK_AGAIN = "Ask the sender to export it again."

_MAGIC = b"isthmus-passport"
_EXACT, _PRIVATE = 1, 2
_HEAD_BYTES = 1024
_SIGNED_PREFIX = {_EXACT: b"isthmus passport 1\0", _PRIVATE: b"isthmus private passport 1\0"}
_TEXTS, _NUMBERS = ("source", "target", "space_version", "encoder_version"), ("dimension", "issued", "expires", "count")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateStatement:
    """What private passports say beside.

    Args:
        epsilon: local differential privacy of one person's one draw.
        projection: SHA-256 in hex of their public coordinates.
        text_dimension: length D of a text vector.
    """

    epsilon: float
    projection: str
    text_dimension: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and 0.0 < self.epsilon <= 64.0):
            raise PassportError("'epsilon' of a private passport is outside 0 to 64")
        if len(self.projection) != 64 or not set(self.projection) <= set("0123456789abcdef"):
            raise PassportError("'projection' of a private passport is no digest")
        if not 1 <= self.text_dimension <= 65_536:
            raise PassportError("'text_dimension' of a private passport is outside 1 to 65536")

    @classmethod
    def of(cls, terms: PrivateTerms) -> PrivateStatement:
        return cls(epsilon=float(terms.epsilon), projection=terms.projection.digest, text_dimension=terms.projection.text_dimension)

    def fields(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What all passports of a file have in common.

    Args:
        source: domain whose data made the vectors.
        target: the one domain that may use them.
        space_version: the interest space of the vectors; of private ones, the space that their public coordinates were taken from.
        encoder_version: the encoder that made them.
        dimension: length of a vector.
        issued: unix seconds.
        expires: unix seconds; from then on it is refused.
        private: None for exact passports.
    """

    source: str
    target: str
    space_version: str
    encoder_version: str
    dimension: int
    issued: int
    expires: int
    private: PrivateStatement | None = None

    def __post_init__(self) -> None:
        check_partner_name(self.source)
        check_partner_name(self.target)
        if self.source == self.target:
            raise PassportError("a passport goes to another domain, not to its own source")
        for field, text in (("space_version", self.space_version), ("encoder_version", self.encoder_version)):
            if not text or len(text) > 128 or not text.isascii() or not text.isprintable():
                raise PassportError(f"'{field}' of a passport is 1 to 128 printable characters")
        for field, value, low, high in (
            ("dimension", self.dimension, 1, 4096 if self.private is None else 64),
            ("issued", self.issued, 0, 2**40),
            ("expires", self.expires, 0, 2**40),
        ):
            if not low <= value <= high:
                raise PassportError(f"'{field}' of a passport is outside {low} to {high}")
        if self.expires <= self.issued:
            raise PassportError("a passport expires after it was issued")

    @property
    def layout(self) -> int:
        return _EXACT if self.private is None else _PRIVATE

    @property
    def start(self) -> int:
        """Where the records begin."""
        return _HEAD_BYTES + (0 if self.private is None else 4 * (self.private.text_dimension + 1) * self.dimension)

    def fields(self) -> dict[str, object]:
        """All of it, flat."""
        common = {name: getattr(self, name) for name in self.__slots__ if name != "private"}
        return common if self.private is None else {**common, **self.private.fields()}

    def canonical(self) -> bytes:
        """The bytes that are signed, before link id and vector."""
        return _SIGNED_PREFIX[self.layout] + json_bytes(self.fields()) + b"\0"


def record(dimension: int) -> np.dtype[np.void]:
    """One passport."""
    return np.dtype([("link_id", f"S{LINK_BYTES}"), ("vector", "<f4", (dimension,)), ("signature", "u1", (SIGNATURE_BYTES,))])


def head(statement: Statement, count: int, terms: PrivateTerms | None) -> bytes:
    """All before the records."""
    text = json_bytes({**statement.fields(), "count": count})
    fixed = (_MAGIC + struct.pack("<HH", statement.layout, len(text)) + text).ljust(_HEAD_BYTES, b"\0")
    return fixed if terms is None else fixed + terms.projection.to_bytes()


def parse_head(plain: bytes) -> tuple[Statement, int]:
    """The statement, and how many passports follow.

    Raises:
        PassportError: it is the head of no passport file, or says what no passport can be.
    """
    malformed = PassportError("the file is not a passport file of this version", do=ASK_AGAIN)
    if len(plain) < _HEAD_BYTES or not plain.startswith(_MAGIC):
        raise malformed
    layout, length = struct.unpack_from("<HH", plain, len(_MAGIC))
    start = len(_MAGIC) + 4
    if layout not in _SIGNED_PREFIX or start + length > _HEAD_BYTES or any(plain[start + length : _HEAD_BYTES]):
        raise malformed
    try:
        values = json.loads(plain[start : start + length])
    except (ValueError, RecursionError):
        raise malformed from None
    kinds: dict[str, Any] = {**dict.fromkeys(_TEXTS, str), **dict.fromkeys(_NUMBERS, int)}
    if layout == _PRIVATE:
        kinds |= {"epsilon": float, "projection": str, "text_dimension": int}
    if not isinstance(values, dict) or set(values) != set(kinds) or any(type(values[name]) is not kinds[name] for name in kinds):
        raise malformed
    count = values.pop("count")
    if not 0 <= count <= MOST_RECORDS:
        raise malformed
    private = None
    if layout == _PRIVATE:
        private = PrivateStatement(**{name: values.pop(name) for name in PrivateStatement.__slots__})
    return Statement(**values, private=private), count


def body(plain: bytes, statement: Statement, count: int) -> memoryview:
    """All records, those of the padding included: a power of two of them.

    Raises:
        PassportError: the file has a length that no file has.
    """
    records = memoryview(plain)[statement.start :]
    bucket, rest = divmod(len(records), record(statement.dimension).itemsize)
    if rest or bucket < 1 or bucket & (bucket - 1) or count > bucket:
        raise PassportError("the passport file is cut short or too long", do=ASK_AGAIN)
    return records


def terms_in(plain: bytes, statement: Statement) -> PrivateTerms | None:
    """Epsilon and public coordinates of private passports; None for exact ones.

    Raises:
        PassportError: the coordinates are not those that the statement names.
    """
    if statement.private is None:
        return None
    projection = Projection.from_bytes(
        plain[_HEAD_BYTES : statement.start],
        space_version=statement.space_version,
        text_dimension=statement.private.text_dimension,
        dimension=statement.dimension,
    )
    if projection.digest != statement.private.projection:
        raise PassportError("the public coordinates of the passports are not those that their source signed", do=ASK_AGAIN)
    return PrivateTerms(epsilon=statement.private.epsilon, projection=projection)


def links_in(plain: bytes, statement: Statement, count: int) -> list[str]:
    """Link ids of the first records; nothing is verified.

    Raises:
        PassportError: the file is cut short, or a link id is none.
    """
    one = record(statement.dimension)
    if len(plain) < statement.start + count * one.itemsize:
        raise PassportError("the passport file is cut short or too long", do=ASK_AGAIN)
    return decode_links(np.frombuffer(plain, dtype=one, count=count, offset=statement.start)["link_id"])


def encode_links(link_ids: Sequence[str]) -> np.ndarray:
    """Link ids as a file holds them.

    Raises:
        PassportError: naming the record whose link id is none, or another's.
    """
    first_row: dict[bytes, int] = {}
    for row, link_id in enumerate(link_ids, start=1):
        try:
            encoded = link_id.encode()
        except UnicodeEncodeError:
            encoded = b""
        if not encoded or len(encoded) > LINK_BYTES or b"\0" in encoded:
            raise PassportError(f"record {row}: a link id is 1 to {LINK_BYTES} bytes of text")
        if first_row.setdefault(encoded, row) != row:
            raise PassportError(f"record {row}: the link id is the one of record {first_row[encoded]}", do="Each link has one passport.")
    return np.array(list(first_row), dtype=f"S{LINK_BYTES}")


def decode_links(encoded: np.ndarray) -> list[str]:
    """Link ids of records; raises what `encode_links` raises."""
    try:
        link_ids = [link.decode() for link in encoded.tolist()]
    except UnicodeDecodeError:
        raise PassportError("a link id is not text", do=ASK_AGAIN) from None
    encode_links(link_ids)
    return link_ids


def json_bytes(values: object) -> bytes:
    """JSON with one spelling."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
