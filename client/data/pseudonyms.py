"""Keyed pseudonyms: what stands for a user inside isthmus.

A pseudonym is the first 16 bytes of HMAC-SHA256(key, user id). The key is made once and stays with the partner; without it nobody can tell
which user a pseudonym is, or whether an id occurs at all. Losing it makes every user a stranger, so it is never overwritten.

Pseudonyms are (n, 16) uint8 arrays, sorted as bytes wherever they are kept. Cost of making them: 1.3 microseconds for each distinct user on
one core, 13 s for ten million.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from client.durable_files import storage_errors, write_file
from shared.errors import DataError

KEY_BYTES = 32
PSEUDONYM_BYTES = 16

_BLOCK_BYTES = 64  # of SHA-256
_CHUNK = 100_000
_PRIVATE = stat.S_IRWXG | stat.S_IRWXO


def load_or_create_key(path: Path) -> bytes:
    """The pseudonym key of a partner; made on the first call, never overwritten.

    Raises:
        DataError: the file is not a key, or others than its owner may read it.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    if not path.exists():
        _create_key(path)
    try:
        mode, key = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise DataError(f"pseudonym key {path} cannot be read (errno {error.errno})", do="Check the path and who may read it.") from None
    if mode & _PRIVATE:
        raise DataError(f"pseudonym key {path} is open to other users of this machine", do=f"chmod 600 '{path}'")
    if len(key) != KEY_BYTES:
        raise DataError(
            f"pseudonym key {path} does not hold {KEY_BYTES} bytes",
            do="Restore it from a copy. A new key would make every user a stranger: it is made only where no file is.",
        )
    return key


def _create_key(path: Path) -> None:
    """Writes beside the path and links into place, so that of two processes one wins and no crash leaves half a key."""
    with storage_errors(f"pseudonym key {path}"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(name, path)
        finally:
            os.unlink(name)


def pseudonym(key: bytes, user_ids: Sequence[str] | pl.Series) -> np.ndarray:
    """Pseudonyms of users, in the order given.

    Args:
        key: 32 bytes.
        user_ids: (n,) ids, distinct where cost matters.
    Returns:
        (n, 16) uint8: HMAC-SHA256(key, id in UTF-8), truncated.

    >>> import hmac
    >>> pseudonym(bytes(32), ["ann"]).tobytes() == hmac.digest(bytes(32), b"ann", "sha256")[:16]
    True
    """
    if len(key) != KEY_BYTES:
        raise DataError(f"a pseudonym key has {KEY_BYTES} bytes")
    padded = key.ljust(_BLOCK_BYTES, b"\0")
    inner, outer = bytes(byte ^ 0x36 for byte in padded), bytes(byte ^ 0x5C for byte in padded)  # RFC 2104
    sha256 = hashlib.sha256
    made = np.empty((len(user_ids), PSEUDONYM_BYTES), dtype=np.uint8)
    for start in range(0, len(user_ids), _CHUNK):
        chunk = _as_bytes(user_ids[start : start + _CHUNK])
        digests = b"".join([sha256(outer + sha256(inner + user_id).digest()).digest() for user_id in chunk])
        made[start : start + len(chunk)] = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)[:, :PSEUDONYM_BYTES]
    return made


def _as_bytes(user_ids: Sequence[str] | pl.Series) -> list[bytes]:
    if isinstance(user_ids, pl.Series):
        return user_ids.cast(pl.Binary).to_list()
    try:
        return [user_id.encode() for user_id in user_ids]
    except UnicodeEncodeError:
        raise DataError("a user id is not valid Unicode") from None


def sort_order(pseudonyms: np.ndarray) -> np.ndarray:
    """(n,) positions that sort pseudonyms as bytes."""
    halves = np.ascontiguousarray(pseudonyms).view(">u8").astype(np.uint64)  # (n, 2)
    return np.lexsort((halves[:, 1], halves[:, 0]))


def are_sorted(pseudonyms: np.ndarray) -> bool:
    """Whether pseudonyms are sorted as bytes and distinct."""
    halves = np.ascontiguousarray(pseudonyms).view(">u8").astype(np.uint64)
    high, low = halves[:, 0], halves[:, 1]
    return bool(np.all((high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))))


def locate(pseudonyms: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted pseudonym stands among sorted ones.

    Args:
        pseudonyms: (n, 16) uint8, sorted and distinct.
        wanted: (m, 16) uint8, in any order.
    Returns:
        (m,) int64 positions, -1 where absent. Cost O(m log n).
    """
    if len(pseudonyms) == 0 or len(wanted) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    table, keys = _as_keys(pseudonyms), _as_keys(wanted)
    found = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[found] == keys, found, -1).astype(np.int64)


def _as_keys(pseudonyms: np.ndarray) -> np.ndarray:
    """(n,) fixed-length byte strings, whose order is that of unsigned bytes. Trailing zeros do not matter where lengths are equal."""
    return np.ascontiguousarray(pseudonyms, dtype=np.uint8).view(f"S{PSEUDONYM_BYTES}")[:, 0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PseudonymTable:
    """The partner's way back from pseudonyms to its own user ids, so that recommendations can be handed out. Never leaves the machine.

    Attributes:
        pseudonyms: (n, 16) uint8, sorted and distinct.
        external_ids: (n,) text, in the same order.
    """

    pseudonyms: np.ndarray
    external_ids: pl.Series

    def __post_init__(self) -> None:
        if self.pseudonyms.shape != (len(self.external_ids), PSEUDONYM_BYTES) or self.pseudonyms.dtype != np.uint8:
            raise DataError("a table of pseudonyms has one external id for each 16 bytes")
        if not are_sorted(self.pseudonyms):
            raise DataError("the pseudonyms of a table are sorted and distinct")

    def save(self, path: Path) -> None:
        """Replaces the file in one step; 0600.

        Raises:
            StorageError: the file cannot be written; an earlier one stays as it was.
        """
        names = pl.Series("pseudonym", _as_keys_list(self.pseudonyms), dtype=pl.Binary)
        buffer = io.BytesIO()
        pl.DataFrame([names, self.external_ids.alias("external_id")]).write_parquet(buffer)
        write_file(Path(path), buffer.getvalue())

    @classmethod
    def open(cls, path: Path) -> PseudonymTable:
        """Reads the table.

        Raises:
            DataError: the file is missing, open to other users, or not such a table.
        """
        path = Path(path)
        frame = None
        with contextlib.suppress(pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
            if path.stat().st_mode & _PRIVATE:
                raise DataError(f"pseudonym table {path} is open to other users of this machine", do=f"chmod 600 '{path}'")
            frame = pl.read_parquet(path, columns=["pseudonym", "external_id"], glob=False)
        if frame is None or frame.dtypes != [pl.Binary, pl.String]:
            raise DataError(f"{path} is not a table of pseudonyms", do="It is made again from the interactions by preparing the domain.")
        joined = b"".join(frame["pseudonym"].to_list())
        return cls(pseudonyms=np.frombuffer(joined, dtype=np.uint8).reshape(-1, PSEUDONYM_BYTES), external_ids=frame["external_id"])

    def external(self, wanted: np.ndarray) -> list[str | None]:
        """External ids of (m, 16) pseudonyms; None where the table does not know one."""
        found = locate(self.pseudonyms, wanted)
        ids = self.external_ids.gather(np.maximum(found, 0)).to_list() if len(self.external_ids) else [None] * len(found)
        return [external if position >= 0 else None for external, position in zip(ids, found.tolist(), strict=True)]

    def forget(self, wanted: np.ndarray) -> PseudonymTable:
        """The table without (m, 16) pseudonyms; those it does not know are no error."""
        keep = np.ones(len(self.pseudonyms), dtype=bool)
        found = locate(self.pseudonyms, wanted)
        keep[found[found >= 0]] = False
        return PseudonymTable(pseudonyms=self.pseudonyms[keep], external_ids=self.external_ids.filter(pl.Series(keep)))


def _as_keys_list(pseudonyms: np.ndarray) -> list[bytes]:
    """Rows as bytes of full length (a fixed-length numpy string would lose trailing zeros)."""
    joined = np.ascontiguousarray(pseudonyms).tobytes()
    return [joined[at : at + PSEUDONYM_BYTES] for at in range(0, len(joined), PSEUDONYM_BYTES)]
