"""A card: a small record that one side writes as JSON, signs, and sends by hand. Read strictly, because it comes from outside."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from .errors import DataError
from .privacy.signing import Signer, holds
from .wire_rules import SIGNATURE, Rule

_LARGEST = 1 << 20
_AGAIN = "Ask the sender for the file again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What is signed is `FORMAT`, a zero byte, and the canonical JSON of every field but the signature, the format among them.

    Args:
        signature: 64 bytes in hex, by the key that the card names.
    Raises:
        DataError: naming the field that is not what it has to be, or because the signature does not hold.
    """

    FORMAT: ClassVar[str]
    RULES: ClassVar[Mapping[str, Rule]]
    KEY: ClassVar[str]
    """Name of the field that holds the signer's public key."""

    signature: str

    def __post_init__(self) -> None:
        check(self, {**self.RULES, "signature": SIGNATURE}, self.FORMAT)
        if not holds(getattr(self, self.KEY), _message(self.FORMAT, dict(_fields(self))), bytes.fromhex(self.signature)):
            raise DataError(
                f"the signature of a card ({self.FORMAT}) does not hold: it was changed after it was signed",
                do="Ask the sender for the file again; a card is made anew rather than edited.",
            )

    @classmethod
    def _signed(cls, signer: Signer, values: Mapping[str, Any]) -> Self:
        whole = {**values, cls.KEY: signer.verify_key}
        try:
            signature = signer.sign(_message(cls.FORMAT, whole)).hex()
        except (TypeError, ValueError):  # something that JSON does not know, or an infinity
            raise DataError(f"a card ({cls.FORMAT}) holds something that cannot be written", do="Give texts and finite numbers.") from None
        return cls(**whole, signature=signature)

    @classmethod
    def from_json(cls, data: str | bytes) -> Self:
        """Reads a card, strictly: every field, no other, none twice, and the signature holds.

        Raises:
            DataError: naming the field.
        """
        try:
            plain = data.decode("utf-8") if isinstance(data, bytes) else data
            values = json.loads(plain, object_pairs_hook=_no_name_twice, parse_constant=_no_constants)
        except (ValueError, RecursionError):
            raise DataError(f"a card ({cls.FORMAT}) is not JSON, or names a field twice", do=_AGAIN) from None
        if not isinstance(values, dict) or values.pop("format", None) != cls.FORMAT:
            raise DataError(
                f"this is no card of the format {cls.FORMAT}", do="Name the file that you were sent; of a newer format, update isthmus."
            )
        return cls(**cls._inner(exactly(values, cls, cls.FORMAT)))

    @classmethod
    def _inner(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Makes records of the tables inside a card."""
        return values

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a card from a file.

        Raises:
            DataError: naming the file and the field.
        """
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for ever
            with open(handle, "rb") as file:
                data = file.read(_LARGEST + 1)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})", do="Name the file that you were sent.") from None
        if len(data) > _LARGEST:
            raise DataError(f"{path} is too large for a card", do="Name the file that you were sent.")
        try:
            return cls.from_json(data)
        except DataError as error:
            raise DataError(f"{path}: {error.what}", do=error.do) from None

    def to_json(self) -> str:
        """A card for a file: a field a line, in the order of the record."""
        return json.dumps({"format": self.FORMAT, **dict(_fields(self))}, indent=1, allow_nan=False, default=_said) + "\n"


def between(low: float, high: float) -> Rule:
    return lambda value: type(value) is float and low <= value <= high


def check(record: Any, rules: Mapping[str, Rule], where: str) -> None:
    """Holds every field against its rule.

    Raises:
        DataError: naming the field, never its value.
    """
    for name, rule in rules.items():
        if not rule(getattr(record, name)):
            raise DataError(f"'{name}' of a card ({where}) is not what it has to be", do=_AGAIN)


def exactly(values: Any, kind: type, where: str) -> dict[str, Any]:
    """A table with every field of a record and no other; a field that was added later, with a default, may be missing.

    Raises:
        DataError: naming what is missing.
    """
    names = {one.name for one in dataclasses.fields(kind)}
    needed = {one.name for one in dataclasses.fields(kind) if one.default is dataclasses.MISSING}
    if not isinstance(values, dict):
        raise DataError(f"'{where}' of a card is not a table", do=_AGAIN)
    if missing := sorted(needed - values.keys()):
        raise DataError(f"a card ({where}) lacks {', '.join(missing)}", do=_AGAIN)
    if values.keys() - names:  # its name is foreign text: not repeated
        raise DataError(f"a card ({where}) has a field that this version does not know", do="Update isthmus, or ask the sender again.")
    return values


def fingerprint(*parts: str) -> str:
    """Public values in 8 groups of 4 hex digits, to be read out over the telephone."""
    digest = hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]
    return " ".join(digest[at : at + 4] for at in range(0, 32, 4))


def _fields(card: Card) -> list[tuple[str, Any]]:
    return [(one.name, getattr(card, one.name)) for one in dataclasses.fields(card)]


def _said(record: Any) -> dict[str, Any]:
    """A table inside a card, without the fields that its writer did not know."""
    fields = [(one, getattr(record, one.name)) for one in dataclasses.fields(record)]
    return {one.name: value for one, value in fields if value is not None or one.default is not None}


def _message(form: str, values: Mapping[str, Any]) -> bytes:
    body = {"format": form, **{name: value for name, value in values.items() if name != "signature"}}
    plain = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_said)
    return form.encode("ascii") + b"\0" + plain.encode("ascii")


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice")
    return values


def _no_constants(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
