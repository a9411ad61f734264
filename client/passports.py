"""Passports: a linked user's interest vector, handed to exactly one partner.

A passport says where in the interest space the source sees a linked user. It goes from partner to partner as a file, never through the
coordinator: sealed to the target's key, each record signed by the source, and padded to a public number of records, so that the size of a
file says little about how many users are linked.

What a file looks like is in `client.passport_file`. A passport is exact (the interest itself: disclosure by consent) or private (one
release of its direction with local differential privacy, `client.private_passports`); both are checked alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nacl.exceptions import CryptoError

from shared.errors import PassportError

from .durable_files import write_file
from .keys import Keys, PublicKeys, seal, verify_key
from .passport_file import (
    ASK_AGAIN,
    LINK_BYTES,
    MOST_RECORDS,
    SIGNATURE_BYTES,
    PrivateStatement,
    Statement,
    body,
    decode_links,
    encode_links,
    head,
    json_bytes,
    links_in,
    parse_head,
    record,
    terms_in,
)
from .privunit import LEAST_DIMENSION, PrivUnit
from .public_projection import PrivateTerms

_MOST_FILE_BYTES = 2**31
_CLOCK_SKEW_S = 3600
_LENGTH_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedPassports:
    """Passports whose seal, signatures, dates and versions hold.

    Args:
        source: the domain that made them.
        link_ids: n tokens, in the order of the file.
        vectors: (n, d) float32, finite; of private ones (n, k), of the one length that their epsilon gives.
        space_version, encoder_version: what they were made with.
        issued, expires: unix seconds.
        private: epsilon and public coordinates; None for exact ones.
    """

    source: str
    link_ids: list[str]
    vectors: np.ndarray
    space_version: str
    encoder_version: str
    issued: int
    expires: int
    private: PrivateTerms | None = None


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
    private: PrivateTerms | None = None,
) -> bytes:
    """Signs, pads and seals the passports for one target.

    Args:
        keys: the source's private keys.
        source: the source's domain name.
        target: the public keys of the one partner that may open the file.
        link_ids: n tokens both sides hold; n = 0 makes a file too, for whether there is one should say nothing.
        vectors: (n, d) float32; private ones (n, k).
        space_version, encoder_version: what the vectors were made with.
        issued, expires: unix seconds.
        pad_to: public power of two: the fewest records of a file; more are padded to the next power of two.
        private: what private passports have in common; None for exact ones.
    Returns:
        The bytes of the file, for `write_passports`.
    Raises:
        PassportError: naming the row of a link id or vector that cannot be used.
    """
    array = np.ascontiguousarray(vectors, dtype="<f4")
    if array.ndim != 2 or len(array) != len(link_ids):
        raise PassportError("passports need one vector for each link id, all of one length")
    if pad_to < 1 or pad_to & (pad_to - 1) or pad_to > MOST_RECORDS or len(link_ids) > MOST_RECORDS:
        raise PassportError(f"'pad_to' and the number of passports are at most {MOST_RECORDS}, and 'pad_to' is a power of two")
    statement = Statement(
        source=source,
        target=target.partner,
        space_version=space_version,
        encoder_version=encoder_version,
        dimension=array.shape[1],
        issued=issued,
        expires=expires,
        private=None if private is None else PrivateStatement.of(private),
    )
    _check_vectors(array)
    if private is not None:
        _check_private(array, private)
    records = np.zeros(max(pad_to, 1 << max(0, len(link_ids) - 1).bit_length()), dtype=record(statement.dimension))
    records["link_id"][: len(link_ids)] = encode_links(link_ids)
    records["vector"][: len(link_ids)] = array
    _sign(records[: len(link_ids)], statement, keys)
    return seal(head(statement, len(link_ids), private) + records.tobytes(), target.box_key)


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
        space_version: the interest space in use; private passports belong to none.
        now: unix seconds.
        dimension: length an exact vector must have; None takes what the space version stands for on trust.
    Raises:
        PassportError: damaged, sealed to someone else, forged, expired, of another space, doubled or with a vector that is not finite.
    """
    plain = keys.open_sealed(data)
    statement, count = parse_head(plain)
    _check_statement(statement, partners, me=me, space_version=space_version, now=now, dimension=dimension)
    one, found = record(statement.dimension), body(plain, statement, count)
    terms = terms_in(plain, statement)
    records = np.frombuffer(found, dtype=one)
    if np.any(np.frombuffer(found[count * one.itemsize :], dtype=np.uint8)):
        raise PassportError("the passport file holds something where it should be empty", do=ASK_AGAIN)
    records = records[:count]
    _verify(records, statement, partners[statement.source])
    vectors = records["vector"].astype(np.float32)
    _check_vectors(vectors)
    if terms is not None:
        _check_private(vectors, terms)
    return ImportedPassports(
        source=statement.source,
        link_ids=decode_links(records["link_id"]),
        vectors=vectors,
        space_version=statement.space_version,
        encoder_version=statement.encoder_version,
        issued=statement.issued,
        expires=statement.expires,
        private=terms,
    )


def statement_of(data: bytes, *, keys: Keys, me: str, source: PublicKeys, now: int) -> Statement:
    """What a file from one partner says of itself, before it is imported.

    No record is looked at: how long this takes shows nothing of how many users are linked.

    Raises:
        PassportError: sealed to or meant for someone else, from another source, expired, or of a length that no file has.
    """
    plain = keys.open_sealed(data)
    statement, count = parse_head(plain)
    _check_statement(statement, {source.partner: source}, me=me, space_version=None, now=now, dimension=None)
    body(plain, statement, count)
    return statement


def contents(data: bytes, keys: Keys) -> tuple[Statement, list[str]]:
    """What a file says it holds, its link ids included, also where it has expired or belongs to another space. Nothing is verified.

    Raises:
        PassportError: it was sealed to another key, or is damaged.
    """
    plain = keys.open_sealed(data)
    statement, count = parse_head(plain)
    return statement, links_in(plain, statement, count)


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
        digest.update(json_bytes([name, little.dtype.str, list(little.shape)]) + little.tobytes())
    return digest.hexdigest()[:16]


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
        raise PassportError("the passports have expired", do=ASK_AGAIN)
    if statement.issued > now + _CLOCK_SKEW_S:
        raise PassportError("the passports were issued in the future", do="Compare the clocks of both partners.")
    if statement.private is not None:  # their coordinates are their own, whatever space is in use
        return
    if space_version is not None and statement.space_version != space_version:
        raise PassportError(
            "the passports belong to another version of the interest space", do="Ask the sender to export them for this run's space."
        )
    if dimension is not None and statement.dimension != dimension:
        raise PassportError("the passports have vectors of another length than the interest space", do=ASK_AGAIN)


def _sign(records: np.ndarray, statement: Statement, keys: Keys) -> None:
    prefix, size = statement.canonical(), LINK_BYTES + 4 * statement.dimension
    raw, step = records.tobytes(), records.dtype.itemsize
    signed = (keys.sign(prefix + raw[at : at + size]) for at in range(0, len(raw), step))
    records["signature"] = np.frombuffer(b"".join(signed), dtype=np.uint8).reshape(len(records), SIGNATURE_BYTES)


def _verify(records: np.ndarray, statement: Statement, source: PublicKeys) -> None:
    prefix, size = statement.canonical(), LINK_BYTES + 4 * statement.dimension
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


def _check_private(vectors: np.ndarray, terms: PrivateTerms) -> None:
    """All private vectors have one length: a longer or shorter one would say something that the law does not."""
    if terms.dimension < LEAST_DIMENSION:
        raise PassportError(
            f"private passports need {LEAST_DIMENSION} coordinates at least", do="Use exact ones, or a larger interest space."
        )
    law = PrivUnit.of(terms.dimension, terms.epsilon)
    fits = np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) * law.mean - 1.0) < _LENGTH_TOLERANCE
    if not fits.all():
        raise PassportError(f"record {int(np.argmin(fits)) + 1}: the vector is no release of the law that the passports name", do=ASK_AGAIN)
