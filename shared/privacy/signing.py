"""Ed25519 signatures on what a partner says about itself: events of its ledger, receipts, hand-overs, changes of key.

Every kind of message begins with a tag of its own, so that a signature made for one purpose never passes for another.
"""

from __future__ import annotations

import os
import re
from typing import Protocol

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from ..errors import AuditError

_KEY = re.compile(r"[0-9a-f]{64}")


class Signer(Protocol):
    """Whoever holds a partner's private key."""

    @property
    def verify_key(self) -> str:
        """The public key, 32 bytes in hex."""
        ...

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of an Ed25519 signature."""
        ...


class SigningPair:
    """A key in memory: for throw-away ledgers. A partner's own key lives in a file that only its client opens.

    Args:
        seed: 32 secret bytes.
    """

    __slots__ = ("_key",)

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)

    @classmethod
    def generate(cls) -> SigningPair:
        """A new key from the operating system's entropy."""
        return cls(os.urandom(32))

    def __repr__(self) -> str:
        return "SigningPair(secret)"

    @property
    def verify_key(self) -> str:
        return self._key.verify_key.encode().hex()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message).signature


def is_verify_key(value: object) -> bool:
    """Whether a value is spelled like a public key: 32 bytes in small hex."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def event_message(digest: str) -> bytes:
    """What is signed of an event: its hash, which covers every field and, through the chain, every event before."""
    return b"isthmus-ledger-event-1\0" + digest.encode("ascii")


def key_message(domain: str, old: str, new: str) -> bytes:
    """What both keys sign when the new one follows the old one."""
    return b"isthmus-key-1\0" + "\0".join((domain, old, new)).encode("utf-8")


def head_message(domain: str, seq: int, digest: str, exported_utc: str) -> bytes:
    """What is signed when a ledger is handed over: this was its last event at this time."""
    return b"isthmus-head-1\0" + "\0".join((domain, str(seq), digest, exported_utc)).encode("utf-8")


def holds(verify_key: str, message: bytes, signature: bytes) -> bool:
    """Whether a signature was made over a message by the owner of a public key.

    Raises:
        AuditError: the key is not 32 bytes in hex.
    """
    if not is_verify_key(verify_key):
        raise AuditError("a public key is not 32 bytes in hex", do="Ask the partner for its public key file again.")
    try:
        VerifyKey(bytes.fromhex(verify_key)).verify(message, signature)
    except (CryptoError, ValueError, TypeError):
        return False
    return True
