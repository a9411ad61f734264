"""What two partners say to one another when one delivers a sealed file to the other's server. The page is ``proto/passports.proto``.

A call begins with an opening in its metadata, signed by the sender; what follows is the file, in parts. The messages are two, with one
field between them: they are described here instead of being generated.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass
from typing import Any, Self

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from shared.errors import PassportError
from shared.privacy.signing import Signer, holds

from .keys import check_partner_name

PACKAGE = "isthmus.passports.v1"
SERVICE = f"{PACKAGE}.Passports"
PASSPORTS, NOTICE = "passports", "notice"
METHODS = {PASSPORTS: "Deliver", NOTICE: "Notice"}
OPENING_KEY = "isthmus-opening-bin"
NOT_TAKEN = "not taken"
"""The one answer to everything that goes wrong."""

MOST_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
CLOCK_SKEW_S = 3600
_SIGNED_PREFIX = b"isthmus-opening-1\0"
_SIGNATURE_BYTES = 64
_MOST_OPENING_BYTES = 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


def describe() -> descriptor_pb2.FileDescriptorProto:
    """The messages as the protobuf library has them described."""
    file = descriptor_pb2.FileDescriptorProto(name="passports.proto", package=PACKAGE, syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    file.message_type.add(name="SealedFile").field.add(name="chunk", number=1, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    file.message_type.add(name="Taken")
    return file


def _classes() -> tuple[Any, Any]:
    pool = descriptor_pool.DescriptorPool()  # of our own: the process-wide one belongs to whoever generates code
    pool.Add(describe())
    sealed, taken = (pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in ("SealedFile", "Taken"))
    return message_factory.GetMessageClass(sealed), message_factory.GetMessageClass(taken)


_SealedFile, _Taken = _classes()
TAKEN: bytes = _Taken().SerializeToString()


def message(chunk: bytes) -> bytes:
    """A part of a file as a message."""
    encoded: bytes = _SealedFile(chunk=chunk).SerializeToString()
    return encoded


def chunk_of(encoded: bytes) -> bytes:
    """The part of a file that a message carries.

    Raises:
        PassportError: it is no such message.
    """
    try:
        chunk: bytes = _SealedFile.FromString(encoded).chunk
    except DecodeError:
        raise PassportError("a message is not part of a sealed file") from None
    return chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a call begins: who delivers what to whom.

    Args:
        kind: `PASSPORTS` or `NOTICE`.
        source, target: domains.
        size: bytes of the sealed file.
        sha256: of the sealed file, in hex.
        sent: unix seconds.
    """

    kind: str
    source: str
    target: str
    size: int
    sha256: str
    sent: int

    def __post_init__(self) -> None:
        check_partner_name(self.source)
        check_partner_name(self.target)
        if self.kind not in METHODS or not 0 < self.size <= MOST_BYTES or _SHA256.fullmatch(self.sha256) is None or self.sent < 0:
            raise PassportError("the opening of a delivery names no kind, size, digest or time that can be")

    @classmethod
    def of(cls, data: bytes, *, kind: str, source: str, target: str) -> Self:
        """For a sealed file, sent now."""
        digest = hashlib.sha256(data).hexdigest()
        return cls(kind=kind, source=source, target=target, size=len(data), sha256=digest, sent=int(time.time()))

    def signed(self, signer: Signer) -> bytes:
        """As it travels."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
        return signer.sign(_SIGNED_PREFIX + text) + text

    @classmethod
    def read(cls, encoded: bytes) -> Self:
        """What an opening says; `holds` says whether it is true.

        Raises:
            PassportError: it is none.
        """
        malformed = PassportError("a delivery begins with no opening of this version")
        if not _SIGNATURE_BYTES < len(encoded) <= _MOST_OPENING_BYTES:
            raise malformed
        try:
            values = json.loads(encoded[_SIGNATURE_BYTES:])
        except (ValueError, RecursionError):
            raise malformed from None
        kinds = {"kind": str, "source": str, "target": str, "size": int, "sha256": str, "sent": int}
        if not isinstance(values, dict) or set(values) != set(kinds) or any(type(values[name]) is not kinds[name] for name in kinds):
            raise malformed
        return cls(**values)


def opening_holds(encoded: bytes, verify_key: str) -> bool:
    """Whether the owner of a key signed an opening."""
    return holds(verify_key, _SIGNED_PREFIX + encoded[_SIGNATURE_BYTES:], encoded[:_SIGNATURE_BYTES])
