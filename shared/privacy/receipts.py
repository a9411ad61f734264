"""Signed receipts: what a domain's ledger said right after a round, in the partner's own hand.

The coordinator keeps the last receipt of every domain, from run to run, and shows it to the partner before each round. A partner whose
ledger does not hold the event that its own receipt names works with an older copy of it, and stops. An audit with the receipts proves that
nothing up to them was cut off.

A receipt's signature is Ed25519 over ``b"isthmus-receipt-1\\0"`` and the canonical JSON (ASCII, no spaces, sorted keys) of all other
fields, with epsilon as ``float.hex()``. Everything in it follows from the public schedule.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from ..errors import AuditError, LedgerError
from ..wire_rules import DOMAIN, SHA256, SIGNATURE, epsilon, flat_json, whole
from .ledger_schema import canonical
from .mechanism import float_from_hex
from .signing import Signer, holds

FORMAT = "isthmus-receipts-1"
LONGEST = 4096
"""Characters that the text of one receipt may have."""
_TAG = b"isthmus-receipt-1\0"
_AGAIN = "Ask the coordinator for the receipts again."


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedReceipt:
    """What a domain's ledger says after a round: the public schedule, never data.

    Args:
        domain: whose ledger.
        count_of_intents: intents in the ledger's life up to the commit.
        head_hash: hash of the commit, the head of the chain right after it.
        payload_sha256: digest of the arrays that the commit is about.
        mechanism: canonical JSON of the round's mechanism record.
        epsilon_spent: what the whole ledger added up to.
        verify_key: the partner's public key, 32 bytes in hex.
        signature: 64 bytes in hex.
    """

    RULES: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "domain": DOMAIN,
        "count_of_intents": whole(0, 2**53),
        "head_hash": SHA256,
        "payload_sha256": SHA256,
        "mechanism": flat_json,
        "epsilon_spent": epsilon,
        "verify_key": SHA256,
        "signature": SIGNATURE,
    }
    """Per field, what a value must be: the same on the wire and in a file."""

    domain: str
    count_of_intents: int
    head_hash: str
    payload_sha256: str
    mechanism: str
    epsilon_spent: float
    verify_key: str
    signature: str

    @classmethod
    def signed(cls, signer: Signer, **said: Any) -> SignedReceipt:
        """Signs a receipt.

        Args:
            said: every field but ``verify_key`` and ``signature``.
        """
        draft = cls(**said, verify_key=signer.verify_key, signature="")
        return cls(**said, verify_key=signer.verify_key, signature=signer.sign(draft._message()).hex())

    def holds(self) -> bool:
        """Whether the owner of ``verify_key`` said exactly this; whose key that is, is another question."""
        try:
            return holds(self.verify_key, self._message(), bytes.fromhex(self.signature))
        except (AuditError, ValueError):
            return False

    def goes_on_from(self, earlier: SignedReceipt) -> bool:
        """Whether this can be a later receipt of the same ledger: more intents, another head, and not less epsilon."""
        more = self.count_of_intents > earlier.count_of_intents
        return more and self.head_hash != earlier.head_hash and self.epsilon_spent >= earlier.epsilon_spent

    def repeats(self, earlier: SignedReceipt) -> bool:
        """Whether this is about the very commit of an earlier receipt: the same answer, sent again."""
        same = all(getattr(self, name) == getattr(earlier, name) for name in ("count_of_intents", "head_hash", "payload_sha256"))
        return same and self.epsilon_spent >= earlier.epsilon_spent

    def to_record(self) -> dict[str, str | int]:
        """Plain values; epsilon as ``float.hex()``, so that it reads back exactly."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "epsilon_spent": self.epsilon_spent.hex()}

    @classmethod
    def from_record(cls, record: object) -> SignedReceipt:
        """Reads what `to_record` wrote; whether the signature holds is asked by `holds`.

        Raises:
            AuditError: naming the field, where it is anything else.
        """
        if not isinstance(record, Mapping) or sorted(map(str, record)) != sorted(cls.RULES):
            raise AuditError("a receipt has exactly the fields " + ", ".join(cls.RULES), do=_AGAIN)
        values = dict(record)
        try:
            values["epsilon_spent"] = float_from_hex("epsilon_spent", values["epsilon_spent"])
        except LedgerError as error:
            raise AuditError(f"a receipt: {error.what}", do=_AGAIN) from None
        for name, rule in cls.RULES.items():
            if not rule(values[name]):
                raise AuditError(f"'{name}' of a receipt is of the wrong type or outside its range", do=_AGAIN)
        return cls(**values)

    def to_json(self) -> str:
        """The one text of a receipt: what the coordinator sends back, and what the genesis after a lost ledger cites."""
        return canonical(self.to_record())

    @classmethod
    def from_json(cls, text: str) -> SignedReceipt:
        """Reads what `to_json` wrote, and no other spelling of it.

        Raises:
            AuditError: where it is anything else.
        """
        receipt = cls.from_record(_parsed(text))
        if receipt.to_json() != text:
            raise AuditError("a receipt is not written in its one canonical form", do=_AGAIN)
        return receipt

    def _message(self) -> bytes:
        said = {name: value for name, value in self.to_record().items() if name != "signature"}
        return _TAG + canonical(said).encode("ascii")


def is_receipt_text(value: object) -> bool:
    """Whether a value is spelled as `SignedReceipt.to_json` spells a receipt."""
    if type(value) is not str or len(value) > LONGEST:
        return False
    try:
        SignedReceipt.from_json(value)
    except AuditError:
        return False
    return True


def receipts_text(receipts: Iterable[SignedReceipt]) -> str:
    """The content of a receipts file.

    Args:
        receipts: the last one of each domain.
    """
    ordered = sorted(receipts, key=lambda receipt: receipt.domain)
    return json.dumps({"format": FORMAT, "receipts": [receipt.to_record() for receipt in ordered]}, indent=1) + "\n"


def read_receipts(path: Path) -> dict[str, SignedReceipt]:
    """Reads a receipts file: domain -> its last receipt. Signatures are for the caller to check, who knows the keys.

    Raises:
        AuditError: the file is missing, unreadable, of another format, or names a domain twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise AuditError(f"the receipts in {path} cannot be read", do=_AGAIN) from None
    content = _parsed(text)
    if not isinstance(content, dict) or set(content) != {"format", "receipts"} or not isinstance(content["receipts"], list):
        raise AuditError(f"{path} is no file of receipts", do=_AGAIN)
    if content["format"] != FORMAT:
        raise AuditError(f"the receipts in {path} are of another format", do="Update isthmus.")
    found: dict[str, SignedReceipt] = {}
    for record in content["receipts"]:
        receipt = SignedReceipt.from_record(record)
        if receipt.domain in found:
            raise AuditError(f"{path} holds two receipts of one domain", do=_AGAIN)
        found[receipt.domain] = receipt
    return found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise AuditError("a receipt, or a file of them, is not JSON", do=_AGAIN) from None
