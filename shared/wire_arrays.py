"""Arrays on the wire: strict reading, canonical writing, and digests.

Digests. `payload_sha256` covers run id, round, configuration hash and, for each array sorted by name: name, dtype, shape and the
little-endian C bytes. Each part is preceded by its length in bytes (8 bytes, little-endian), so no two payloads share an encoding.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord

MAX_ARRAY_BYTES = 256 * 2**20
MAX_ARRAYS = 64
_NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")


class Malformed(ValueError):
    """A message is not what its kind declares. The text names the part, never a value."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What one array must be. A size of None in ``shape`` is free (within `MAX_ARRAY_BYTES`)."""

    dtype: str
    shape: tuple[int | None, ...] | None
    limit: float = math.inf  # largest magnitude of an element


def _little_endian(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)


def _framed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _array_parts(arrays: Mapping[str, np.ndarray]) -> bytes:
    parts: list[bytes] = []
    for name in sorted(arrays):
        array = _little_endian(np.asarray(arrays[name]))
        parts += [name.encode(), array.dtype.name.encode(), ",".join(map(str, array.shape)).encode(), array.tobytes()]
    return _framed(*parts)


def payload_sha256(run_id: str, round: int, config_hash: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of an update: what the ledger's `commit` records and the receipt repeats. It excludes the receipt.

    >>> a = {"w": np.zeros((2, 3), np.float32)}
    >>> payload_sha256("r", 1, "c", a) == payload_sha256("r", 2, "c", a)
    False
    """
    head = _framed(b"isthmus payload 1", run_id.encode(), str(round).encode(), config_hash.encode())
    return hashlib.sha256(head + _array_parts(arrays)).hexdigest()


def layer_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of a transfer layer: part of a round's idempotency key (run id, round, digest of the incoming layer)."""
    return hashlib.sha256(_framed(b"isthmus layer 1") + _array_parts(arrays)).hexdigest()


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(_little_endian(np.asarray(arrays[name]))) for name in sorted(arrays)})


def _decode(where: str, array: object) -> np.ndarray:
    """Reads one array without trusting its header: sizes are checked before any memory is taken."""
    if not isinstance(array, Array) or array.stype != "numpy.ndarray":
        raise Malformed(f"{where} is not a NumPy array")
    data = bytes(array.data)
    if len(data) > MAX_ARRAY_BYTES:
        raise Malformed(f"{where} is larger than {MAX_ARRAY_BYTES} bytes")
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise Malformed(f"{where} is not in NumPy format 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=1024)
    except Malformed:
        raise
    except Exception:
        raise Malformed(f"{where} has no readable header") from None
    if dtype.hasobject or dtype.kind not in "fiu" or dtype.byteorder == ">" or (fortran and len(shape) > 1):
        raise Malformed(f"{where} is not a plain little-endian C array")
    body = data[stream.tell() :]
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(body):
        raise Malformed(f"{where} does not hold as many bytes as its shape says")
    if array.dtype != dtype.name or tuple(array.shape) != tuple(shape):
        raise Malformed(f"{where} declares one shape or dtype and holds another")
    return np.frombuffer(body, dtype=dtype).reshape(shape).copy()


def check_array(where: str, array: np.ndarray, spec: ArraySpec) -> None:
    if array.dtype.name != spec.dtype:
        raise Malformed(f"{where} is not {spec.dtype}")
    if spec.shape is not None and (
        array.ndim != len(spec.shape) or any(want is not None and want != got for want, got in zip(spec.shape, array.shape, strict=True))
    ):
        raise Malformed(f"{where} does not have the agreed shape")
    if not bool(np.isfinite(array).all()):
        raise Malformed(f"{where} holds a value that is not finite")
    if math.isfinite(spec.limit) and array.size and float(np.abs(array).max()) > spec.limit:
        raise Malformed(f"{where} holds a value outside its range")


def check_names(where: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Compares sets of names; a foreign name is a value of the sender's choice, so it is counted and not repeated."""
    missing, extra = sorted(set(wanted) - set(found)), len(set(found) - set(wanted))
    if missing or extra:
        raise Malformed(f"{where}: missing {', '.join(missing) or 'nothing'}; {extra} that do not belong")


def read_arrays(record: object, specs: Mapping[str, ArraySpec] | None) -> dict[str, np.ndarray]:
    """Reads an `ArrayRecord` that holds exactly ``specs``; without them, one that holds float32 arrays under allowed names."""
    if not isinstance(record, ArrayRecord):
        raise Malformed("'arrays' is not a record of arrays")
    if specs is None:
        if not 1 <= len(record) <= MAX_ARRAYS or not all(_NAME.fullmatch(name) for name in record):
            raise Malformed("'arrays' holds no array, too many, or one whose name is not allowed")
        specs = {name: ArraySpec("float32", None) for name in record}
    check_names("'arrays'", record.keys(), specs)
    arrays: dict[str, np.ndarray] = {}
    for name in sorted(specs):
        where = f"array '{name}'"
        arrays[name] = _decode(where, record[name])
        check_array(where, arrays[name], specs[name])
    return arrays
