"""The catalogue: items and their public texts, a file of its own, complete without any interaction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from shared.errors import ConfigError, DataError, InvalidItem

from .tables import Column, Source, advice_on, as_source, numbered, read_table

JOINED_BY = ". "
MAX_ITEMS = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueColumns:
    """Names of the columns in the partner's file.

    Args:
        item: the identifier.
        texts: public texts, joined in this order to one text an item.
    """

    item: str = "item_id"
    texts: tuple[str, ...] = ("title", "categories")

    def wanted(self) -> list[Column]:
        """The columns that are read: the identifier, then the texts."""
        texts = [Column(role=f"text_{number}", name=name) for number, name in enumerate(self.texts)]
        return [Column(role="item", name=self.item), *texts]


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Items of one domain. An item's position is its number everywhere else.

    Attributes:
        item_ids: (n_items,) distinct ids.
        texts: (n_items,) public texts; empty where an item has none. Such an item keeps its place, with a zero vector.
    Raises:
        InvalidItem: there is not one text for each id, an id is empty, or two items share one.
    """

    item_ids: list[str]
    texts: list[str]

    def __post_init__(self) -> None:
        if len(self.item_ids) != len(self.texts):
            raise InvalidItem("a catalogue has one text for each item")
        if len(self.item_ids) > MAX_ITEMS:
            raise InvalidItem(f"a catalogue holds at most {MAX_ITEMS:,} items")
        if len(set(self.item_ids)) != len(self.item_ids) or not all(self.item_ids):
            raise InvalidItem("the ids of a catalogue are distinct and not empty")

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def dtype(self) -> pl.Enum:
        """The ids as a Polars type, whose codes are positions: casting to it looks up."""
        return pl.Enum(self.item_ids)

    @cached_property
    def has_text(self) -> np.ndarray:
        """(n_items,) bool; False where an item has no text and so no place in the interest space."""
        return np.fromiter(map(bool, self.texts), dtype=bool, count=len(self.texts))

    @property
    def n_without_text(self) -> int:
        return int(len(self) - self.has_text.sum())

    @cached_property
    def content_hash(self) -> str:
        """SHA-256, in hex, over ids and texts in order; lengths first, so that no two catalogues share the bytes."""
        digest = hashlib.sha256(b"isthmus catalogue 1")
        for column in (self.item_ids, self.texts):
            lengths = np.fromiter(map(len, column), dtype="<i8", count=len(column))
            digest.update(len(column).to_bytes(8, "little") + lengths.tobytes())
            digest.update("".join(column).encode())
        return digest.hexdigest()

    def index(self, item_ids: Sequence[str]) -> np.ndarray:
        """(n,) int32 positions of items; -1 where the catalogue lacks one."""
        codes = pl.Series(item_ids, dtype=pl.String).cast(self.dtype, strict=False).to_physical()
        return codes.cast(pl.Int32).fill_null(-1).to_numpy().astype(np.int32)


def read_catalogue(source: Source, *, columns: CatalogueColumns | None = None) -> Catalogue:
    """Reads a catalogue from CSV, Parquet, JSON lines or a table of a database.

    An item's text is the configured columns joined by ``". "``; empty ones are skipped. An item without any text is kept and counted
    (`Catalogue.n_without_text`); a catalogue in which no item has text is refused, because nothing could be placed.

    Raises:
        DataError: the file cannot be read, a column is missing, or there is no item; names file and column.
        InvalidItem: an id is missing, or two items share one; names file, rows and column.
    """
    source = as_source(source)
    columns = columns or CatalogueColumns()
    if not columns.texts:
        raise ConfigError("no text column is named for the catalogue", do="Name at least one public column, such as the title.")
    wanted = columns.wanted()
    text = pl.concat_str([pl.col(column.role) for column in wanted[1:]], separator=JOINED_BY, ignore_nulls=True)
    frame = read_table(source, wanted, lambda rows: rows.select("item", text=text)).with_row_index("row", offset=1)
    frame = frame.filter(pl.col("item").is_not_null() | (pl.col("text") != ""))  # a row without anything is a blank line
    if frame.is_empty():
        raise DataError(f"{source} holds no item", do="A catalogue has one row for each item, and a file of it a header.")
    missing = frame.filter(pl.col("item").is_null())["row"].to_numpy()
    if len(missing):
        raise InvalidItem(f"{source}: {numbered(missing)}: '{columns.item}' is missing", do=advice_on(source))
    doubled = frame.filter(pl.col("item").is_first_distinct().not_())
    if len(doubled):
        first = frame.filter(pl.col("item") == doubled["item"][0])["row"][0]
        rows = numbered(doubled["row"].to_numpy())
        raise InvalidItem(
            f"{source}: {rows}: '{columns.item}' names an item that an earlier row names (the first of them: row {first:,})",
            do=advice_on(source, "Give each item one row."),
        )
    catalogue = Catalogue(item_ids=frame["item"].to_list(), texts=frame["text"].to_list())
    if not catalogue.has_text.any():
        raise InvalidItem(
            f"{source}: no item has any text in {', '.join(repr(name) for name in columns.texts)}", do="Name the text columns."
        )
    return catalogue
