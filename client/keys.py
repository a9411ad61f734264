"""A partner's own keys: one to sign passports with (Ed25519), one to open those sealed to it (X25519)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.signing import SigningKey, VerifyKey

from shared.addresses import is_address
from shared.errors import PassportError

from .durable_files import storage_errors, write_file

KEY_FILE = "partner.keys"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # as the wire has it for a domain
_FIELDS = frozenset({"partner", "verify_key", "box_key"})
_ADDRESS_FIELDS = frozenset({"address", "certificate", "address_signature"})
_ADDRESS_PREFIX = b"isthmus-passport-address-1\0"
_ASK_FOR_IT = "Ask the partner for the file again."


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKeys:
    """What a partner tells the others, over a channel they trust.

    Args:
        partner: the partner's domain name.
        verify_key: Ed25519, 32 bytes in hex.
        box_key: X25519, 32 bytes in hex.
        address: ``HOST:PORT`` at which the partner takes passports and notices; empty = they are handed over as files.
        certificate: the one certificate, PEM, that is accepted there.
        address_signature: Ed25519 of the verify key over both, in hex: so the fingerprint, which is of the keys alone, vouches for them.
    """

    partner: str
    verify_key: str
    box_key: str
    address: str = ""
    certificate: str = ""
    address_signature: str = ""

    def __post_init__(self) -> None:
        check_partner_name(self.partner)
        for field, value in (("verify_key", self.verify_key), ("box_key", self.box_key)):
            if len(value) != 64 or any(c not in "0123456789abcdef" for c in value):
                raise PassportError(f"'{field}' of partner '{self.partner}' is not 32 bytes in hex", do=_ASK_FOR_IT)
        if (self.address or self.certificate or self.address_signature) and not self._address_holds():
            raise PassportError(f"the address of partner '{self.partner}' was not signed by its key, or is damaged", do=_ASK_FOR_IT)

    @property
    def fingerprint(self) -> str:
        """Both keys in 8 groups of 4 hex digits, to be read out over the telephone."""
        digest = hashlib.sha256(f"{self.partner}/{self.verify_key}/{self.box_key}".encode()).hexdigest()[:32]
        return " ".join(digest[at : at + 4] for at in range(0, 32, 4))

    def to_json(self) -> str:
        names = _FIELDS | _ADDRESS_FIELDS if self.address else _FIELDS  # without an address: as earlier versions wrote and read it
        return json.dumps({name: getattr(self, name) for name in self.__slots__ if name in names}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> PublicKeys:
        """Reads what `to_json` wrote.

        Raises:
            PassportError: anything but exactly the three fields, or the six of a partner with an address.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise PassportError("the public keys are not JSON", do=_ASK_FOR_IT) from None
        fits = isinstance(values, dict) and set(values) in (_FIELDS, _FIELDS | _ADDRESS_FIELDS)
        if not fits or any(type(v) is not str for v in values.values()):
            raise PassportError(
                "public keys have exactly the fields partner, verify_key and box_key, and those of an address where there is one",
                do=_ASK_FOR_IT,
            )
        return cls(**values)

    def _address_holds(self) -> bool:
        if not is_address(self.address) or not 0 < len(self.certificate) <= 16_384 or not self.certificate.isascii():
            return False
        try:
            signature = bytes.fromhex(self.address_signature)
            verify_key(self).verify(_address_message(self.partner, self.address, self.certificate), signature)
        except (ValueError, TypeError, CryptoError):
            return False
        return True


class Keys:
    """A partner's private keys. They are made once, stay in one file (0600), and are never sent.

    Args:
        signing_seed: 32 secret bytes.
        box_secret: 32 secret bytes.
    """

    __slots__ = ("_box", "_signing")

    def __init__(self, signing_seed: bytes, box_secret: bytes) -> None:
        self._signing = SigningKey(signing_seed)
        self._box = PrivateKey(box_secret)

    def __repr__(self) -> str:
        return "Keys(secret)"

    @classmethod
    def load_or_create(cls, folder: Path) -> Keys:
        """Opens the keys of a folder; makes them from the operating system's entropy where there are none yet.

        Raises:
            PassportError: the file is damaged, or others may read it.
            StorageError: the folder cannot be written.
        """
        path = Path(folder) / KEY_FILE
        if not path.exists():
            _create(path)
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> Keys:
        """Opens one file of keys.

        Raises:
            PassportError: the file is damaged, or others may read it.
            StorageError: it cannot be read.
        """
        with storage_errors(f"'{path.name}'"):
            mode, data = path.stat().st_mode, path.read_bytes()
        if stat.S_IMODE(mode) & 0o077:
            raise PassportError(
                f"'{path.name}' can be read by others than its owner",
                do=f"Run chmod 600 on it, and make new keys with isthmus-client ledger rotate-key if others may have used '{path.name}'.",
            )
        try:
            values = json.loads(data)
            return cls(bytes.fromhex(values["signing"]), bytes.fromhex(values["box"]))
        except (ValueError, KeyError, TypeError, RecursionError, CryptoError):
            raise PassportError(
                f"'{path.name}' is damaged", do="Restore it from a copy, or remove it and give the partners the new public keys."
            ) from None

    @staticmethod
    def write_new(path: Path) -> None:
        """Writes keys from the operating system's entropy into a file (0600), on disk when this returns; one that is there is replaced.

        Raises:
            StorageError: no space left, or the folder cannot be written.
        """
        write_file(path, _fresh())

    def public(self, partner: str, *, address: str = "", certificate: str = "") -> PublicKeys:
        """The public half, under the partner's domain name; with a signed address where the partner takes deliveries."""
        signature = self.sign(_address_message(partner, address, certificate)).hex() if address else ""
        box_key = self._box.public_key.encode().hex()
        return PublicKeys(
            partner=partner,
            verify_key=self.verify_key,
            box_key=box_key,
            address=address,
            certificate=certificate,
            address_signature=signature,
        )

    @property
    def verify_key(self) -> str:
        """The public half of the signing key, 32 bytes in hex: what signs this partner's ledger and receipts."""
        return self._signing.verify_key.encode().hex()

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of an Ed25519 signature."""
        return self._signing.sign(message).signature

    def open_sealed(self, data: bytes) -> bytes:
        """Opens what was sealed to these keys.

        Raises:
            PassportError: it was sealed to another key, or is damaged.
        """
        try:
            return SealedBox(self._box).decrypt(data)
        except (CryptoError, ValueError, TypeError):
            raise PassportError(
                "the file was not sealed to this partner's key, or is damaged", do="Ask the sender for it again, with your public keys."
            ) from None


def seal(data: bytes, box_key: str) -> bytes:
    """Encrypts to one X25519 key (hex); only its owner can open it, and it names no sender."""
    return SealedBox(PublicKey(bytes.fromhex(box_key))).encrypt(data)


def verify_key(keys: PublicKeys) -> VerifyKey:
    return VerifyKey(bytes.fromhex(keys.verify_key))


def check_partner_name(name: str) -> None:
    """Refuses names that could be mistaken for something else in a path, a header or a message."""
    if _NAME.fullmatch(name) is None:
        raise PassportError("a partner's name is 1 to 64 letters, digits, '-' or '_', and begins with a letter or a digit")


def _address_message(partner: str, address: str, certificate: str) -> bytes:
    said = {"partner": partner, "address": address, "certificate": certificate}
    return _ADDRESS_PREFIX + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def _fresh() -> bytes:
    return json.dumps({"signing": os.urandom(32).hex(), "box": os.urandom(32).hex()}).encode()


def _create(path: Path) -> None:
    with storage_errors(f"'{path.name}'"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_fresh())
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was first: its keys are the keys
                os.link(name, path)
        finally:
            os.unlink(name)
