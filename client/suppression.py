"""Marks of those who were forgotten: enough to leave them out for good, too little to say who they are.

A user's mark is the keyed pseudonym (HMAC-SHA256 with the partner's own key, 16 bytes), a link id's mark one with a key derived from that.
The partner's source files may still hold the rows of a forgotten user, so a mark has to stay; without the key nobody can tell whose it is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import DataError, StateError

from .data.pseudonyms import PSEUDONYM_BYTES, locate, pseudonym, sort_order
from .durable_files import write_file

_LINKS, _CHECK = b"isthmus marks of links 1", b"isthmus marks, check of the key 1"
_RESTORE = "Restore home/register.sqlite and home/keys from one copy: without the marks, forgotten users would be trained on again."


class Marker:
    """Makes marks.

    Args:
        key: the partner's pseudonym key, 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._link_key = hmac.digest(key, _LINKS, "sha256")
        self.check = hmac.digest(key, _CHECK, "sha256")[:PSEUDONYM_BYTES]
        """Tells the key of the marks from another one, and nothing else about it."""

    def __repr__(self) -> str:
        return "Marker(secret)"

    def users(self, user_ids: Sequence[str]) -> np.ndarray:
        """(n, 16) uint8 marks of users: their pseudonyms, in the order given."""
        return pseudonym(self._key, user_ids)

    def links(self, link_ids: Sequence[str]) -> list[bytes]:
        """n marks of link ids, in the order given."""
        joined = pseudonym(self._link_key, link_ids).tobytes()
        return [joined[at : at + PSEUDONYM_BYTES] for at in range(0, len(joined), PSEUDONYM_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Marks:
    """Who is left out of everything, for good.

    Attributes:
        users: (n, 16) uint8, sorted and distinct.
        links: marks of link ids.
        marker: makes marks to compare with; None where nobody is left out.
    """

    users: np.ndarray
    links: frozenset[bytes]
    marker: Marker | None

    @classmethod
    def nobody(cls) -> Marks:
        return cls(users=np.zeros((0, PSEUDONYM_BYTES), dtype=np.uint8), links=frozenset(), marker=None)

    @classmethod
    def of(cls, users: Sequence[bytes], links: Sequence[bytes], marker: Marker) -> Marks:
        found = np.frombuffer(b"".join(sorted(users)), dtype=np.uint8).reshape(-1, PSEUDONYM_BYTES)
        return cls(users=found, links=frozenset(links), marker=marker)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def digest(self) -> str:
        """Names the state of the marks, for fingerprints; empty where nobody is left out."""
        if not len(self.users) and not self.links:
            return ""
        return hashlib.sha256(self.users.tobytes() + b"/" + b"".join(sorted(self.links))).hexdigest()

    def of_users(self, pseudonyms: np.ndarray) -> np.ndarray:
        """(n,) bool: which of (n, 16) pseudonyms are left out."""
        return np.asarray(locate(self.users, pseudonyms) >= 0)

    def of_links(self, link_ids: Sequence[str]) -> np.ndarray:
        """(n,) bool: which link ids are left out."""
        if self.marker is None or not self.links:
            return np.zeros(len(link_ids), dtype=bool)
        return np.fromiter((mark in self.links for mark in self.marker.links(link_ids)), dtype=bool, count=len(link_ids))


def sorted_marks(marks: np.ndarray) -> np.ndarray:
    """(n, 16) marks as bytes sort, each once."""
    if not len(marks):
        return marks
    in_order = marks[sort_order(marks)]
    keep = np.concatenate([[True], np.any(in_order[1:] != in_order[:-1], axis=1)])
    return np.asarray(in_order[keep])


class Witness:
    """A note beside the keys of how many users were forgotten, so that a lost or older register is noticed, not trusted.

    It is written after the register: where a crash came between, the register knows more, which is no harm.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(path)

    def raise_to(self, users: int) -> None:
        if users > self.users():
            write_file(self._path, json.dumps({"forgotten_users": users}).encode())

    def users(self) -> int:
        """Forgotten users at least; 0 where nobody ever was.

        Raises:
            DataError: the file is damaged.
        """
        try:
            return int(json.loads(self._path.read_bytes())["forgotten_users"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"'{self._path.name}' cannot be read", do=_RESTORE) from None

    def check(self, marks: Marks) -> None:
        """Raises StateError where the register holds fewer marks than were made."""
        if len(marks) < self.users():
            raise StateError("the register holds fewer marks of forgotten users than were made", do=_RESTORE)
