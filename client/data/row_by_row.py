"""The slow, exact readers of text files: one record at a time, so that a fault has a row number.

The fast readers of `tables` stay the rule. These take over where a file is wrong, or unusual enough for a fast reader to be in doubt
(newlines or stray quotes inside a field, bare carriage returns, a byte-order mark in JSON lines): what they accept is read, what they
refuse is named by its row. Cost: some 2 microseconds a CSV row, 5 a line of JSON.

A row is a data record, counted from 1 after the header; in CSV a blank line counts as one and a quoted newline does not; in JSON lines
blank lines do not count. Nothing here puts a value into a message.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import polars as pl

from shared.errors import DataError

_BLOCK = 1 << 22
_CHUNK_ROWS = 50_000
_HEADER_LINES = 100
_SAVE_AS_UTF8 = "Save the file as UTF-8 and try again."

Row = tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """What one look over the bytes of a text file tells."""

    n_bytes: int
    n_lines: int
    n_quotes: int
    bare_returns: bool
    """Whether a carriage return stands without a newline after it."""
    tail: bytes
    """What follows the last newline (at most the last block); empty where the file ends with a newline."""

    @property
    def is_plain(self) -> bool:
        """Whether quotes pair up and lines end in the usual way."""
        return self.n_quotes % 2 == 0 and not self.bare_returns


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns every failure to read bytes into a `DataError` that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", do="Check the path in the settings of this domain.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path} is cut off or damaged: it cannot be decompressed", do="Export the file again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}, errno {error.errno})") from None


def opened(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed where it begins like gzip."""
    with open(path, "rb") as file:
        magic = file.read(2)
    return cast(IO[bytes], gzip.open(path, "rb")) if magic == b"\x1f\x8b" else open(path, "rb")


def look_over(path: Path) -> Bytes:
    """Counts what decides which reader is safe. One pass, about 1 GB/s.

    Raises:
        DataError: the file is missing, unreadable, empty, or evidently not UTF-8 text.
    """
    n_bytes = n_lines = n_quotes = n_returns = n_line_ends = 0
    last, tail, start = b"", b"", b""
    with reading(path), opened(path) as file:
        while block := file.read(_BLOCK):
            start = start or block[:4]
            n_bytes += len(block)
            n_lines += block.count(b"\n")
            n_quotes += block.count(b'"')
            n_returns += block.count(b"\r")
            n_line_ends += block.count(b"\r\n") + (last == b"\r" and block[:1] == b"\n")
            cut = block.rfind(b"\n")
            tail = block[cut + 1 :] if cut >= 0 else (tail + block)[-_BLOCK:]
            last = block[-1:]
    if n_bytes == 0:
        raise DataError(f"{path} is empty", do="Export the file again; it should hold at least a header and a row.")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16, not UTF-8", do=_SAVE_AS_UTF8)
    if start in (b"PK\x03\x04", b"PAR1"):
        raise DataError(f"{path} is not the text file that its suffix says", do="Give the file the suffix of its format.")
    return Bytes(n_bytes=n_bytes, n_lines=n_lines + bool(tail), n_quotes=n_quotes, bare_returns=n_returns != n_line_ends, tail=tail)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_records(path: Path) -> Iterator[list[str]]:
    """Header first, then every record; leading blank lines are skipped as other readers do."""
    with reading(path), opened(path) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        number = 0
        while True:
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error:
                where = f"row {number}" if number else "the header"
                raise DataError(
                    f"{path}: {where}: a quoted field is not closed, goes on after its closing quote, or is longer than 131,072 characters",
                    do='Double every quote inside a quoted field ("") and close each field that begins with one.',
                ) from None
            if number or record:
                yield record
                number += 1


def csv_header(path: Path) -> list[str]:
    """Column names of a CSV file, without blanks around them."""
    header = next(_csv_records(path), None)
    if header is None:
        raise DataError(f"{path} holds no header", do="The first line names the columns.")
    if not all(map(_is_text, header)):
        raise DataError(f"{path}: the header is not UTF-8", do=_SAVE_AS_UTF8)
    return [name.strip() for name in header]


def csv_rows(path: Path, positions: Sequence[int], names: Sequence[str], n_columns: int) -> Iterator[Row]:
    """Chosen fields of every record; a field that a short record lacks is None.

    Raises:
        DataError: a record that has more fields than the header, quotes that do not match, bytes that are not UTF-8; with the row.
    """
    for row, record in enumerate(islice(_csv_records(path), 1, None), start=1):
        if len(record) > n_columns:
            raise DataError(
                f"{path}: row {row}: {len(record)} fields where the header names {n_columns}",
                do="Put quotes around fields that hold a comma, and end lines with a newline.",
            )
        chosen = tuple(record[at] if at < len(record) else None for at in positions)
        for name, value in zip(names, chosen, strict=True):
            if value is not None and not _is_text(value):
                raise DataError(f"{path}: row {row}: '{name}' is not UTF-8", do=_SAVE_AS_UTF8)
        yield chosen


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    row = 0
    with reading(path), opened(path) as file:
        for line in file:
            text = line.removeprefix(b"\xef\xbb\xbf") if row == 0 else line
            if not text.strip():
                continue
            row += 1
            try:
                record = json.loads(text.decode("utf-8"))
            except UnicodeDecodeError:
                record, fault = None, "is not UTF-8"
            except (ValueError, RecursionError):
                record, fault = None, "is not valid JSON"
            else:
                fault = "is not a JSON object"
            if not isinstance(record, dict):
                raise DataError(
                    f"{path}: row {row} {fault}", do='JSON lines hold one object in each line: {"user_id": ..., "item_id": ...}.'
                )
            yield row, record


def jsonl_header(path: Path) -> list[str]:
    """Keys of the first hundred objects, in order of appearance."""
    names: dict[str, None] = {}
    for _, record in islice(_json_records(path), _HEADER_LINES):
        names.update(dict.fromkeys(record))
    if not names:
        raise DataError(f"{path} holds no row", do="JSON lines hold one object in each line.")
    return list(names)


def _json_text(value: Any) -> str | None:
    """A JSON string or number as text. Raises TypeError for anything else."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def jsonl_rows(path: Path, names: Sequence[str]) -> Iterator[Row]:
    """Chosen fields of every object; a key that an object lacks is None."""
    for row, record in _json_records(path):
        chosen: list[str | None] = []
        for name in names:
            try:
                value = _json_text(record.get(name))
            except (TypeError, ValueError):
                raise DataError(f"{path}: row {row}: '{name}' is neither text nor a number") from None
            if value is not None and not _is_text(value):
                raise DataError(f"{path}: row {row}: '{name}' is not valid Unicode", do="Half of a surrogate pair stands alone.")
            chosen.append(value)
        yield tuple(chosen)


def frame(rows: Iterator[Row], roles: Sequence[str]) -> pl.DataFrame:
    """Rows as a frame of text columns, built in chunks so that Python objects never pile up."""
    schema = dict.fromkeys(roles, pl.String)
    parts = [pl.DataFrame(schema=schema)]
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        parts.append(pl.DataFrame(chunk, schema=schema, orient="row"))
    return pl.concat(parts)
