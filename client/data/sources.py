"""Reads a partner's interactions: CSV, Parquet, JSON lines or a table of a database become pseudonyms, catalogue positions and times.

Rows stream through Polars and shrink at once to codes (some 20 bytes a row); user ids are gone, but for the distinct ones, before anything
is sorted. A file is read whole or refused: errors name file, rows and column, never a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from shared.errors import ConfigError, DataError, InvalidInteraction

from .catalogue import Catalogue
from .interactions import Interactions, latest, time_order
from .pseudonyms import locate, pseudonym, sort_order
from .tables import Column, Source, advice_on, as_source, check_distinct, numbered, read_table

EARLIEST_S = 0
"""1970-01-01, the first second that ``unix_s`` may name."""
LATEST_S = 4_102_444_800
"""2100-01-01, the last."""

_NO_ROW = "A file needs a header and at least one row, a table at least one row."

TimeMeaning = Literal["unix_s", "order"]
UnknownItems = Literal["refuse", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNames:
    """Names of the columns in the partner's file.

    Args:
        rating: None never reads ratings; a name that the file lacks is allowed, unless a similar one looks misspelt.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    rating: str | None = "rating"

    def wanted(self, time: TimeMeaning) -> list[Column]:
        """The columns that are read."""
        wanted = [
            Column(role="user", name=self.user),
            Column(role="item", name=self.item),
            Column(role="time", name=self.time, kind=time),
        ]
        if self.rating is not None:
            wanted.append(Column(role="rating", name=self.rating, kind="number", required=False))
        return wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReport:
    """What reading a file did, for the partner's own eyes. Exact counts: never part of a message.

    Attributes:
        n_rows: data rows of the file.
        n_blank: rows without user, item and time, skipped.
        n_unknown_items: rows dropped because the catalogue lacks the item.
        n_duplicates: rows dropped because user, item and time repeat an earlier row.
        n_truncated_users: users of whom only the latest interactions were kept.
        n_truncated: rows dropped for that.
        n_users: users that remain.
        n_single: users that remain with one interaction.
        n_kept: interactions that remain.
        has_ratings: whether the file has ratings.
    """

    n_rows: int
    n_blank: int
    n_unknown_items: int
    n_duplicates: int
    n_truncated_users: int
    n_truncated: int
    n_users: int
    n_single: int
    n_kept: int
    has_ratings: bool

    def lines(self) -> list[str]:
        """What a person should be told; the first line always, others only where something was left out."""
        said = [f"{self.n_kept:,} interactions of {self.n_users:,} users, {self.n_single:,} of them with a single one"]
        told = {
            f"{self.n_blank:,} blank rows skipped": self.n_blank,
            f"{self.n_unknown_items:,} rows dropped: the catalogue lacks their item": self.n_unknown_items,
            f"{self.n_duplicates:,} rows dropped: user, item and time repeat an earlier row": self.n_duplicates,
            f"{self.n_truncated:,} rows dropped: of {self.n_truncated_users:,} users only the latest are kept": self.n_truncated,
        }
        return said + [line for line, count in told.items() if count]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadResult:
    """What `read` gives.

    Attributes:
        interactions: sorted by user, then time, then order in the file.
        report: what was counted.
        external_ids: (n_users,) text, the partner's own ids in the order of ``interactions.pseudonyms``; for the local table only.
    """

    interactions: Interactions
    report: ReadReport
    external_ids: pl.Series


@dataclass(frozen=True, slots=True)
class _Fault:
    """A kind of bad row: the condition, the column it is about, what to say and what to do."""

    wrong: pl.Expr
    column: str
    what: str
    do: str = ""


def read(
    source: Source,
    *,
    catalogue: Catalogue,
    pseudonym_key: bytes,
    columns: ColumnNames | None = None,
    time: TimeMeaning = "unix_s",
    rating_range: tuple[float, float] | None = None,
    max_items_per_user: int = 500,
    unknown_items: UnknownItems = "refuse",
    without: np.ndarray | None = None,
) -> ReadResult:
    """Reads interactions; the suffix of a file decides the format (``.csv``, ``.parquet``, ``.jsonl``; text also ``.gz``).

    Args:
        source: the file, or a table of a database (`client.data.sql`). Rows are data records, counted from 1 after the header.
        catalogue: the domain's items.
        pseudonym_key: from `pseudonyms.load_or_create_key`.
        columns: names of the columns.
        time: ``unix_s`` for seconds since 1970, checked to lie between 1970 and 2100; ``order`` for any whole numbers.
        rating_range: lowest and highest rating, inclusive; None accepts every finite number.
        max_items_per_user: latest interactions that are kept of each user.
        unknown_items: ``refuse`` a file with items that the catalogue lacks, or ``drop`` and count those rows.
        without: (m, 16) uint8 sorted pseudonyms of users who are left out as if the file did not hold them; nothing in the result says that
            there are any. (Only the rows of the file, blank or of unknown items, are still counted.)
    Raises:
        DataError: the file cannot be read, a column is missing or of the wrong type, or no row is left.
        InvalidInteraction: rows are unusable; names the first of them, and the column.
    """
    source = as_source(source)
    columns = columns or ColumnNames()
    _check_choices(time, rating_range, max_items_per_user, unknown_items)
    wanted = columns.wanted(time)
    check_distinct(wanted)
    faults = _faults(columns, time, rating_range)
    categories = pl.Categories.random()
    frame = read_table(source, wanted, lambda rows: _coded(rows, catalogue, categories, faults, columns.rating))
    keep, n_blank, n_unknown = _kept(source, frame["fault"].to_numpy(), faults, columns, unknown_items)
    rated = "rating" in frame.columns
    codes = frame["user"].to_physical().fill_null(0).to_numpy()[keep]
    items = frame["item"].to_physical().cast(pl.Int32).fill_null(0).to_numpy()[keep]
    times = frame["time"].fill_null(0).to_numpy()[keep]
    ratings = frame["rating"].fill_null(0.0).to_numpy()[keep] if rated else None
    n_rows, names = len(frame), categories.to_series()  # taken while a column still holds the categories
    del frame, keep
    users, pseudonyms, external_ids = _pseudonymous(codes, names, pseudonym_key)
    if without is not None and len(without):
        rows, users, pseudonyms, external_ids = _left_out(users, pseudonyms, external_ids, without)
        items, times, ratings = items[rows], times[rows], None if ratings is None else ratings[rows]
        if len(users) == 0:
            raise DataError(f"{source} holds no usable row", do=_NO_ROW)
    rows, n_duplicates, truncated = _sorted_rows(users, items, times, len(pseudonyms), max_items_per_user)
    interactions = Interactions(
        users=users[rows], items=items[rows], times=times[rows], ratings=None if ratings is None else ratings[rows], pseudonyms=pseudonyms
    )
    report = ReadReport(
        n_rows=n_rows,
        n_blank=n_blank,
        n_unknown_items=n_unknown,
        n_duplicates=n_duplicates,
        n_truncated_users=int((truncated > 0).sum()),
        n_truncated=int(truncated.sum()),
        n_users=interactions.n_users,
        n_single=int((np.bincount(interactions.users) == 1).sum()),
        n_kept=len(interactions),
        has_ratings=rated,
    )
    return ReadResult(interactions=interactions, report=report, external_ids=external_ids)


def _check_choices(time: str, rating_range: tuple[float, float] | None, max_items_per_user: int, unknown_items: str) -> None:
    if time not in ("unix_s", "order"):
        raise ConfigError("'time' is neither 'unix_s' nor 'order'")
    if unknown_items not in ("refuse", "drop"):
        raise ConfigError("'unknown_items' is neither 'refuse' nor 'drop'")
    if max_items_per_user < 1:
        raise ConfigError("'max_items_per_user' is below 1")
    if rating_range is not None and not rating_range[0] <= rating_range[1]:
        raise ConfigError("'rating_range' is not a lowest and a highest rating")


def _faults(columns: ColumnNames, time: TimeMeaning, rating_range: tuple[float, float] | None) -> list[_Fault]:
    """Kinds of bad rows, in the order in which a row is examined. Codes 1 and 2 stand for a blank row and an unknown item."""
    moment = pl.col("time")
    faults = [
        _Fault(pl.col("user").is_null(), columns.user, "is missing"),
        _Fault(pl.col("item").is_null(), columns.item, "is missing"),
        _Fault(pl.col("time_missing"), columns.time, "is missing"),
        _Fault(moment.is_null(), columns.time, "is not a whole number" + (" of seconds" if time == "unix_s" else "")),
    ]
    if time == "unix_s":
        for unit, factor in (("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)):
            looks = moment.is_between(100_000_000 * factor, LATEST_S * factor)
            faults.append(_Fault(looks, columns.time, f"looks like {unit}, not seconds", f"Divide the column by {factor:,}."))
        do = 'Give seconds since 1970-01-01, or set time = "order" where the column only orders.'
        faults.append(_Fault(~moment.is_between(EARLIEST_S, LATEST_S), columns.time, "is outside the years 1970 to 2100", do))
    if columns.rating is not None:
        rating = pl.col("rating")
        faults.append(_Fault(pl.col("rating_missing"), columns.rating, "is missing", "Fill the column, or read no ratings."))
        faults.append(_Fault(rating.is_null() | ~rating.is_finite(), columns.rating, "is not a number"))
        if rating_range is not None:
            low, high = rating_range
            faults.append(_Fault(~rating.is_between(low, high), columns.rating, f"is outside the agreed range {low:g} to {high:g}"))
    return faults


_BLANK, _UNKNOWN, _FIRST = 1, 2, 3


def _coded(rows: pl.LazyFrame, catalogue: Catalogue, categories: pl.Categories, faults: list[_Fault], rating: str | None) -> pl.LazyFrame:
    """Ids become codes, and each row gets the code of its first fault; 0 = none."""
    rated = "rating" in rows.collect_schema()
    looked_up = pl.col("item").cast(catalogue.dtype, strict=False)
    blank = pl.col("user").is_null() & pl.col("item").is_null() & pl.col("time_missing")
    kinds = [(_BLANK, blank)]
    kinds += [(code, kind.wrong) for code, kind in enumerate(faults, start=_FIRST) if rated or kind.column != rating]
    kinds.append((_UNKNOWN, looked_up.is_null()))
    fault = pl.coalesce([*(pl.when(wrong).then(pl.lit(code, pl.UInt8)) for code, wrong in kinds), pl.lit(0, pl.UInt8)])
    coded = [pl.col("user").cast(pl.Categorical(categories)), looked_up, pl.col("time"), fault.alias("fault")]
    return rows.select(*coded, *([pl.col("rating").cast(pl.Float32)] if rated else []))


def _kept(
    source: Source, fault: np.ndarray, faults: list[_Fault], columns: ColumnNames, unknown_items: UnknownItems
) -> tuple[np.ndarray, int, int]:
    """(n_rows,) bool of usable rows, and how many were blank and unknown. Raises for the first kind of bad row that occurs."""
    counts = np.bincount(fault, minlength=_FIRST + len(faults))
    bad = counts.copy()
    bad[[0, _BLANK]] = 0
    if unknown_items == "drop":
        bad[_UNKNOWN] = 0
    if bad.any():
        first = fault[np.flatnonzero(np.isin(fault, np.flatnonzero(bad)))[0]]
        kind = faults[first - _FIRST] if first >= _FIRST else _unknown(columns)
        rows = np.flatnonzero(fault == first) + 1
        raise InvalidInteraction(f"{source}: {numbered(rows)}: '{kind.column}' {kind.what}", do=advice_on(source, kind.do))
    if counts[0] == 0:
        lost = ": the catalogue lacks every item that it names" if counts[_UNKNOWN] else ""
        raise DataError(f"{source} holds no usable row{lost}", do=_NO_ROW)
    return fault == 0, int(counts[_BLANK]), int(counts[_UNKNOWN])


def _unknown(columns: ColumnNames) -> _Fault:
    return _Fault(
        pl.lit(True), columns.item, "is not in the catalogue", 'Add the item, or set unknown_items = "drop" to leave such rows out.'
    )


def _pseudonymous(codes: np.ndarray, names: pl.Series, key: bytes) -> tuple[np.ndarray, np.ndarray, pl.Series]:
    """(n,) int32 users, (n_users, 16) sorted pseudonyms and (n_users,) external ids; only users that still have a row."""
    seen = np.flatnonzero(np.bincount(codes))
    external_ids = names.gather(seen)
    pseudonyms = pseudonym(key, external_ids)
    order = sort_order(pseudonyms)
    place = np.zeros(seen[-1] + 1, dtype=np.int32)
    place[seen[order]] = np.arange(len(seen), dtype=np.int32)
    return place[codes], pseudonyms[order], external_ids.gather(order).alias("external_id")


def _left_out(
    users: np.ndarray, pseudonyms: np.ndarray, external_ids: pl.Series, without: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pl.Series]:
    """(n,) bool of rows that stay, and the users that stay, numbered anew."""
    stays = locate(without, pseudonyms) < 0
    place = (np.cumsum(stays) - 1).astype(np.int32)
    rows = stays[users]
    return rows, place[users[rows]], pseudonyms[stays], external_ids.filter(pl.Series(stays))


def _sorted_rows(
    users: np.ndarray, items: np.ndarray, times: np.ndarray, n_users: int, max_items_per_user: int
) -> tuple[np.ndarray, int, np.ndarray]:
    """Rows to keep, sorted by user and time; how many were duplicates; how many of each user fell to the bound."""
    order = time_order(users, times)
    repeats = _repeats(users[order], times[order], items[order])
    order = order[~repeats]
    lengths = np.bincount(users[order], minlength=n_users)
    truncated = np.maximum(lengths - max_items_per_user, 0)
    if truncated.any():
        order = order[latest(np.concatenate(([0], np.cumsum(lengths))), max_items_per_user)]
    return order, int(repeats.sum()), truncated


def _repeats(users: np.ndarray, times: np.ndarray, items: np.ndarray) -> np.ndarray:
    """(n,) bool: whether an earlier row has the same user, time and item. Rows are sorted by user and time; only ties are looked at."""
    tie = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    repeats = np.zeros(len(users), dtype=bool)
    inside = np.flatnonzero(np.concatenate((tie, [False])) | np.concatenate(([False], tie)))
    if len(inside) == 0:
        return repeats
    group = np.concatenate(([0], np.cumsum(~tie)))[inside]
    order = np.lexsort((items[inside], group))  # stable: of equal rows the first of the file comes first
    group, item = group[order], items[inside][order]
    repeats[inside[order[1:]]] = (group[1:] == group[:-1]) & (item[1:] == item[:-1])
    return repeats
