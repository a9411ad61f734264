"""Tables in CSV, Parquet and JSON lines, read to typed columns by the suffix of the file; those of a database bring their own reader.

Every format gives the same columns: text without blanks around it (empty = missing), whole numbers, numbers. Identifiers are text
always, so ``0615391206`` keeps its zero. CSV fields are all parsed, also those nobody asked for: a quote left open in a column that is
skipped would otherwise swallow rows in silence.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import polars as pl

from shared.errors import ConfigError, DataError

from . import row_by_row

Kind = Literal["text", "unix_s", "order", "number"]
Refine = Callable[[pl.LazyFrame], pl.LazyFrame]

_FORMATS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_COLUMN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ .\-]{0,63}")
_EXACT_IN_FLOAT = 2.0**53
_NO_PRUNING = pl.QueryOptFlags(projection_pushdown=False)
_FAILURES = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, OverflowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column that a reader wants.

    Args:
        role: its name in the frame that comes back; columns of other kinds than text also give ``<role>_missing``.
        name: its name in the partner's file.
        kind: what its values are; ``unix_s`` and ``order`` are whole numbers (Parquet timestamps are converted).
        required: a missing optional column is left out of the frame.
    """

    role: str
    name: str
    kind: Kind = "text"
    required: bool = True


class Table(Protocol):
    """A source that is no file: a table of a database. As text it is what errors call it."""

    @property
    def advice(self) -> str:
        """What to know about the numbers of its rows."""

    def read(self, columns: Sequence[Column], refine: Refine) -> pl.DataFrame:
        """What `read_table` does."""


Source = Path | Table


def as_source(source: Source | str) -> Source:
    """A path where a text or a path was given."""
    return Path(source) if isinstance(source, (str, os.PathLike)) else source


def advice_on(source: Source, do: str = "") -> str:
    """What to do about a row: the same for every source, and how a database counts rows."""
    return do if isinstance(source, Path) else f"{do} {source.advice}".strip()


def check_distinct(columns: Sequence[Column]) -> None:
    """Refuses two roles that name one column."""
    names = [column.name for column in columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"column '{twice}' is named for two purposes", do="Each column of a file is read once.")


def format_of(path: Path) -> str:
    """``csv``, ``parquet`` or ``jsonl``, by suffix; ``.gz`` behind a text format is allowed."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    kind = _FORMATS.get(suffixes[0] if packed and len(suffixes) == 2 else suffixes[-1] if suffixes else "")
    if kind is None or (packed and kind == "parquet"):
        raise DataError(f"{path} has no known format", do=f"Known suffixes: {', '.join(_FORMATS)}; .csv.gz and .jsonl.gz too.")
    return kind


def numbered(rows: np.ndarray, shown: int = 5) -> str:
    """Names rows by number: ``row 3``, ``rows 3, 5 and 9``, ``rows 3, 5, 9, 11, 12 and 40 more``."""
    first = [f"{row:,}" for row in rows[:shown].tolist()]
    if len(rows) == 1:
        return f"row {first[0]}"
    if len(rows) > shown:
        return f"rows {', '.join(first)} and {len(rows) - shown:,} more"
    return f"rows {', '.join(first[:-1])} and {first[-1]}"


def read_table(source: Source, columns: Sequence[Column], refine: Refine) -> pl.DataFrame:
    """Reads chosen columns and refines them while they stream.

    Args:
        source: a table, or the path of a file, whose suffix decides the format.
        columns: what to read.
        refine: further lazy steps, row by row, applied before anything is collected, so that bulky text need not be kept.
    Returns:
        the refined frame; row i is data row i + 1.
    Raises:
        DataError: the source cannot be read, or a column is missing, doubled or of the wrong type; names file, row and column.
    """
    check_distinct(columns)
    if not isinstance(source, Path):
        return source.read(columns, refine)
    path = source
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a file")
    kind = format_of(path)
    if kind == "parquet":
        return _read_parquet(path, columns, refine)
    looked = row_by_row.look_over(path)
    header = row_by_row.csv_header(path) if kind == "csv" else row_by_row.jsonl_header(path)
    present = those_there(path, header, columns)
    text = {column.role: pl.String() for column in present}
    raw = _fast_csv(path, header, present, looked) if kind == "csv" else _fast_jsonl(path, present)
    frame = None if raw is None else _attempt(refine(shaped(raw, present, text)))
    if kind == "csv" and frame is not None and len(frame) != looked.n_lines - 1:
        frame = None  # a field spans lines: meant so, or a quote left open that swallowed rows
    if frame is None:
        names = [column.name for column in present]
        positions = [header.index(name) for name in names]
        rows = row_by_row.csv_rows(path, positions, names, len(header)) if kind == "csv" else row_by_row.jsonl_rows(path, names)
        exact = row_by_row.frame(rows, list(text))
        frame = _attempt(refine(shaped(exact.lazy(), present, text)))
    if frame is None:
        raise DataError(f"{path} cannot be read as {kind}", do="Export the file again.")
    return frame


def _attempt(plan: pl.LazyFrame) -> pl.DataFrame | None:
    """Collects; None on any failure, whose text may quote values and is therefore dropped here."""
    try:
        return plan.collect(engine="streaming", optimizations=_NO_PRUNING)
    except _FAILURES:
        return None


def _fast_csv(path: Path, header: list[str], columns: Sequence[Column], looked: row_by_row.Bytes) -> pl.LazyFrame | None:
    if not looked.is_plain or looked.tail.count(b",") >= len(header):
        return None  # a last line without a newline may hold too many fields unnoticed
    try:
        plan = pl.scan_csv(path, infer_schema=False, glob=False)
        n_columns = len(plan.collect_schema())
    except _FAILURES:
        return None
    return plan.select(pl.nth(header.index(c.name)).alias(c.role) for c in columns) if n_columns == len(header) else None


def _fast_jsonl(path: Path, columns: Sequence[Column]) -> pl.LazyFrame | None:
    if any(mark in str(path) for mark in "*?["):
        return None  # Polars would take the name for a pattern
    schema = {column.name: pl.String for column in columns}
    try:
        frame = pl.scan_ndjson(path, schema=schema).collect(engine="streaming")
    except _FAILURES:
        return None
    odd = pl.all().is_in(["true", "false"]) | pl.all().str.contains(r"^[\[{]|\x00")  # nested, logical, or half a surrogate pair
    if frame.select(pl.any_horizontal(odd.any())).item():
        return None
    return frame.rename({column.name: column.role for column in columns}).lazy()


def _read_parquet(path: Path, columns: Sequence[Column], refine: Refine) -> pl.DataFrame:
    with row_by_row.reading(path), open(path, "rb") as file:
        if not file.read(1):
            raise DataError(f"{path} is empty", do="Export the file again.")
    plan: pl.LazyFrame | None = None
    schema: Mapping[str, pl.DataType] = {}
    try:
        plan = pl.scan_parquet(path, glob=False)
        schema = plan.collect_schema()
    except _FAILURES:
        plan = None
    frame = None
    if plan is not None:
        header = list(schema)
        present = those_there(path, header, columns)
        types = {column.role: schema[column.name] for column in present}
        for column in present:
            check_type(path, column, types[column.role])
        raw = plan.select(pl.nth(header.index(c.name)).alias(c.role) for c in present)
        frame = _attempt_pruned(refine(shaped(raw, present, types)))
    if frame is None:
        raise DataError(f"{path} is not a readable Parquet file: cut off or damaged", do="Export the file again.")
    return frame


def _attempt_pruned(plan: pl.LazyFrame) -> pl.DataFrame | None:
    try:
        return plan.collect(engine="streaming")
    except _FAILURES:
        return None


def check_type(source: Source, column: Column, dtype: pl.DataType | None, name: str = "") -> None:
    """Refuses a column whose type cannot hold what is wanted.

    Args:
        dtype: None where a database has a type that no file has.
        name: what to call the type; by default by its name in Polars.
    Raises:
        DataError: names column and type.
    """
    dtype = dtype or pl.Unknown()
    text = dtype in (pl.String, pl.Null) or isinstance(dtype, (pl.Categorical, pl.Enum))
    fits = {
        "text": text or dtype.is_integer() or (isinstance(dtype, pl.Decimal) and dtype.scale == 0),
        "unix_s": text or dtype.is_numeric() or isinstance(dtype, (pl.Datetime, pl.Date)),
        "order": text or dtype.is_numeric() or isinstance(dtype, (pl.Datetime, pl.Date)),
        "number": text or dtype.is_numeric(),
    }[column.kind]
    if not fits:
        wanted = "text or whole numbers" if column.kind == "text" else "numbers"
        hint = "Whole numbers with gaps are often written as floats: write them as text." if dtype.is_float() else ""
        raise DataError(f"{source}: column '{column.name}' is of type {name or dtype.base_type().__name__}, not {wanted}", do=hint)


def those_there(source: Source, header: Sequence[str], columns: Sequence[Column]) -> list[Column]:
    """The wanted columns that the file has; refuses doubled ones, missing ones, and optional ones that look misspelt."""
    wanted = {column.name for column in columns}
    present = []
    for column in columns:
        count = list(header).count(column.name)
        if count > 1:
            raise DataError(f"{source}: column '{column.name}' occurs {count} times in the header")
        if count == 1:
            present.append(column)
            continue
        near = _nearest(column.name, [name for name in header if name not in wanted], 0.6 if column.required else 0.8)
        if column.required or near is not None:
            raise DataError(f"{source}: no column '{column.name}'", do=_advice(near, header))
    return present


def _nearest(name: str, header: Sequence[str], cutoff: float) -> str | None:
    known = {other.lower(): other for other in header if _COLUMN_NAME.fullmatch(other)}
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=cutoff)
    return known[near[0]] if near else None


def _advice(near: str | None, header: Sequence[str]) -> str:
    """What to do about a missing column. A header that looks like data is never quoted."""
    if any(re.fullmatch(r"\s*[-+]?[0-9][0-9.]*\s*", name) for name in header):
        return "The first line looks like data: begin the file with a line of column names."
    if near is not None:
        return f"The nearest column is '{near}': rename it, or name it in the settings of this domain."
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        return "The fields seem to be separated by something else than a comma."
    return f"None of its {len(header)} columns has a similar name: name the right one in the settings of this domain."


def shaped(raw: pl.LazyFrame, columns: Sequence[Column], types: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    return raw.select(expression for column in columns for expression in _expressions(column, types[column.role]))


def _expressions(column: Column, dtype: pl.DataType) -> list[pl.Expr]:
    """The typed column and, for numbers, whether each value was missing (a null that is not missing is of the wrong type)."""
    value = pl.col(column.role)
    numeric = dtype.is_numeric() or dtype.is_temporal()
    if not numeric:
        value = value.cast(pl.String).str.strip_chars()
        value = pl.when(value != "").then(value)
    if column.kind == "text":
        return [value.cast(pl.String).alias(column.role)]
    missing = value.is_null() | value.is_nan() if dtype.is_float() else value.is_null()
    if column.kind == "number":
        typed = value.cast(pl.Float64, strict=False)
    elif isinstance(dtype, (pl.Datetime, pl.Date)):
        typed = value.cast(pl.Datetime("us")).dt.epoch("s" if column.kind == "unix_s" else "us")
    elif dtype.is_integer():
        typed = value.cast(pl.Int64, strict=False)
    else:
        real = value.cast(pl.Float64, strict=False)
        whole = pl.when((real.abs() < _EXACT_IN_FLOAT) & (real == real.floor())).then(real).cast(pl.Int64, strict=False)
        typed = whole if dtype.is_float() or dtype.is_decimal() else pl.coalesce(value.cast(pl.Int64, strict=False), whole)
    return [typed.alias(column.role), missing.alias(f"{column.role}_missing")]
