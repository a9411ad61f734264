"""What a list leaves out: items that a user had or dismissed, items that somebody blocked, items that are not in stock.

Files of the partner hold one item id a line, or are tables (CSV, Parquet, JSON lines) with the domain's item column. A table of blocked
items that also has the user column blocks each item for that user only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from shared.errors import UsageError

from ..data.pseudonyms import pseudonym, sort_order
from ..data.tables import Column, read_table
from ..settings import DataSettings
from .ragged import Ragged

TABLES = (".csv", ".parquet", ".pq", ".jsonl", ".ndjson", ".csv.gz", ".jsonl.gz", ".ndjson.gz")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Filters:
    """What is left out of every answer.

    Attributes:
        everywhere: (n_items,) bool, items that nobody is offered.
        users: (n_blocking, 16) uint8 pseudonyms, sorted and distinct.
        blocked: their blocked items, in the same order.
        unknown: rows of the files whose item the catalogue lacks; they change nothing.
    """

    everywhere: np.ndarray
    users: np.ndarray
    blocked: Ragged
    unknown: int = 0

    @classmethod
    def none(cls, n_items: int) -> Filters:
        return cls(everywhere=np.zeros(n_items, dtype=bool), users=np.zeros((0, 16), dtype=np.uint8), blocked=Ragged.empty(0))


def read_filters(*, blocked: Path | None, in_stock: Path | None, item_ids: list[str], data: DataSettings, pseudonym_key: bytes) -> Filters:
    """Reads the partner's lists.

    Args:
        blocked: items that are not to be recommended; None = all may be.
        in_stock: the only items that may be; None = all are there.
        item_ids: of the catalogue, in its order.
        data: names of the columns.
        pseudonym_key: for users of ``blocked``.
    Raises:
        UsageError: a file cannot be read, is empty, or names no item of the catalogue.
        DataError: a table lacks the item column.
    """
    catalogue = pl.Enum(item_ids)
    everywhere, unknown = np.zeros(len(item_ids), dtype=bool), 0
    users, per_user = np.zeros((0, 16), dtype=np.uint8), Ragged.empty(0)
    if in_stock is not None:
        frame = _read(in_stock, data, with_user=False)
        there, missing = _positions(in_stock, frame, catalogue)
        everywhere[:] = True
        everywhere[there] = False
        unknown += missing
    if blocked is not None:
        frame = _read(blocked, data, with_user=True)
        there, missing = _positions(blocked, frame, catalogue)
        unknown += missing
        if "user" not in frame.columns:
            everywhere[there] = True
        else:
            known = frame.filter(pl.col("item").cast(catalogue, strict=False).is_not_null())
            users, per_user = _by_user(known["user"], there, pseudonym_key)
    if everywhere.all():
        raise UsageError("no item may be recommended: all are blocked or out of stock", do="Look at the lists that were named.")
    return Filters(everywhere=everywhere, users=users, blocked=per_user, unknown=unknown)


def read_ids(path: Path) -> list[tuple[int, str]]:
    """Ids of a text file, one a line, with the numbers of their lines; blank lines are passed over.

    Raises:
        UsageError: the file cannot be read, is no text, or holds nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text in UTF-8", do="Write one id a line, or give a table as .csv, .parquet or .jsonl.") from None
    except OSError:
        raise UsageError(f"{path} cannot be read", do="Check the path and who may read it.") from None
    found = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not found:
        raise UsageError(f"{path} is empty", do="Write one id a line.")
    return found


def is_table(path: Path) -> bool:
    """Whether a file is a table, by its name."""
    return path.name.lower().endswith(TABLES)


def _read(path: Path, data: DataSettings, *, with_user: bool) -> pl.DataFrame:
    """A frame with ``item``, and ``user`` where a table has one."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}", do="Check the path.")
    if not is_table(path):
        return pl.DataFrame({"item": [name for _, name in read_ids(path)]}, schema={"item": pl.String})
    columns = [Column(role="item", name=data.item_column)]
    if with_user:
        columns.append(Column(role="user", name=data.user_column, required=False))
    frame = read_table(path, columns, lambda rows: rows).drop_nulls()
    if frame.is_empty():
        raise UsageError(f"{path} is empty", do=f"A table has the column '{data.item_column}' and at least one row.")
    return frame


def _positions(path: Path, frame: pl.DataFrame, catalogue: pl.Enum) -> tuple[np.ndarray, int]:
    """(m,) positions of the items that the catalogue has, and how many rows name others."""
    codes = frame["item"].cast(catalogue, strict=False).to_physical()
    known = codes.drop_nulls().to_numpy().astype(np.int64)
    if len(known) == 0:
        raise UsageError(f"{path} names no item of the catalogue", do="Check that it holds the ids of the catalogue's item column.")
    return known, len(codes) - len(known)


def _by_user(users: pl.Series, items: np.ndarray, key: bytes) -> tuple[np.ndarray, Ragged]:
    distinct = users.unique(maintain_order=True)
    names = pseudonym(key, distinct)
    order = sort_order(names)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    rows = rank[users.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int64)]
    return names[order], Ragged.of_pairs(rows, items, len(distinct))
