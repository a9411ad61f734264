"""A folder of vectors that survives anything: kill -9, a full disk, flipped bits, two processes at once.

The folder holds immutable shards. A shard is written under a temporary name and then renamed, so a reader sees all of it or nothing; it
carries a digest of its content, and one that does not match is deleted, which costs only the work of making it again. Nothing is ever
changed in place, so processes need no lock.

A shard is, little-endian: 8 bytes ``ISTHVEC1``, uint32 number of rows n, uint32 dimension D, 32 bytes SHA-256 of the rest; then n keys of
32 bytes and n x D float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.errors import StorageError

Array32 = NDArray[np.float32]

MAGIC = b"ISTHVEC1"
KEY_BYTES = 32
HEADER = struct.Struct("<8sII32s")
ABANDONED_AFTER_S = 3600.0
"""A temporary file older than this was left by a process that was killed."""


class VectorCache:
    """Vectors (D,) float32 by 32-byte key.

    Args:
        folder: made when the first vector is added; readable by its owner only.
        dimension: D.
    """

    def __init__(self, folder: Path, dimension: int) -> None:
        self.folder = folder
        self.dimension = dimension

    def read(self, keys: Sequence[bytes]) -> tuple[NDArray[np.bool_], Array32]:
        """Looks all keys up in one pass over the shards.

        Returns:
            found: (n,) whether the key is there.
            vectors: (n, D) float32, zeros where it is not.
        """
        place = {key: row for row, key in enumerate(keys)}
        found = np.zeros(len(keys), dtype=bool)
        vectors = np.zeros((len(keys), self.dimension), dtype=np.float32)
        for shard_keys, shard_vectors in self._shards():
            pairs = [(place[key], row) for row, key in enumerate(shard_keys) if key in place]
            if pairs:
                here, there = np.array(pairs).T
                vectors[here] = shard_vectors[there]
                found[here] = True
        return found, vectors

    def add(self, keys: Sequence[bytes], vectors: Array32) -> None:
        """Writes one shard.

        Raises:
            StorageError: no space left, or the folder cannot be written; what was added before is still there.
        """
        if vectors.shape != (len(keys), self.dimension) or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError("a shard is made of n keys of 32 bytes and vectors (n, D)")
        body = b"".join(keys) + np.ascontiguousarray(vectors, dtype="<f4").tobytes()
        header = HEADER.pack(MAGIC, len(keys), self.dimension, hashlib.sha256(body).digest())
        name = uuid.uuid4().hex
        temporary = self.folder / f"{name}.tmp"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(header + body)
            os.replace(temporary, self.folder / f"{name}.vectors")
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StorageError(
                f"the cache of text vectors cannot be written: {error.strerror}",
                do="Free some space, or name another cache folder; vectors that were written before are kept.",
            ) from None

    def _shards(self) -> Iterator[tuple[list[bytes], Array32]]:
        try:
            files = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"the cache of text vectors cannot be read: {error.strerror}", do="Name another cache folder.") from None
        for file in files:
            if file.suffix == ".tmp":
                _remove_if_abandoned(file)
            elif file.suffix == ".vectors":
                with contextlib.suppress(OSError):  # another process found it broken first
                    shard = self._parse(file.read_bytes())
                    if shard is None:
                        file.unlink(missing_ok=True)
                    else:
                        yield shard

    def _parse(self, content: bytes) -> tuple[list[bytes], Array32] | None:
        """Keys and vectors of a shard; None when it is not what was written."""
        if len(content) < HEADER.size:
            return None
        magic, count, dimension, digest = HEADER.unpack_from(content)
        body = memoryview(content)[HEADER.size :]
        if magic != MAGIC or dimension != self.dimension or len(body) != count * (KEY_BYTES + 4 * dimension):
            return None
        if hashlib.sha256(body).digest() != digest:
            return None
        keys = [bytes(body[at : at + KEY_BYTES]) for at in range(0, count * KEY_BYTES, KEY_BYTES)]
        return keys, np.frombuffer(body[count * KEY_BYTES :], dtype="<f4").reshape(count, dimension)


def _remove_if_abandoned(file: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - file.stat().st_mtime > ABANDONED_AFTER_S:
            file.unlink(missing_ok=True)
