"""Links: which users are the same person at a partner, by a random token that both sides hold."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from shared.errors import DataError, InvalidInteraction

from .pseudonyms import PSEUDONYM_BYTES, are_sorted, locate, pseudonym, sort_order
from .tables import Column, Source, advice_on, as_source, numbered, read_table

_TOKEN = r"^[A-Za-z0-9_.:~+/=\-]{1,64}$"
_PARTNER = r"^[a-z0-9_\-]{1,64}$"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkColumns:
    """Names of the columns in the partner's file."""

    user: str = "user_id"
    partner: str = "partner"
    link: str = "link_id"

    def wanted(self) -> list[Column]:
        """The columns that are read."""
        return [Column(role=role, name=getattr(self, role)) for role in ("user", "partner", "link")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartnerLinks:
    """Links with one partner.

    Attributes:
        pseudonyms: (n, 16) uint8 users of this domain, sorted and distinct.
        link_ids: (n,) tokens in the same order, distinct.
    """

    pseudonyms: np.ndarray
    link_ids: list[str]

    def __post_init__(self) -> None:
        if self.pseudonyms.shape != (len(self.link_ids), PSEUDONYM_BYTES) or not are_sorted(self.pseudonyms):
            raise DataError("links have one pseudonym for each link id, sorted and distinct")
        if len(set(self.link_ids)) != len(self.link_ids) or not all(re.fullmatch(_TOKEN, link_id) for link_id in self.link_ids):
            raise DataError("link ids are distinct tokens of at most 64 letters, digits and -_.:~+/=")

    def __len__(self) -> int:
        return len(self.link_ids)

    def link_of(self, pseudonyms: np.ndarray) -> list[str | None]:
        """Link ids of (m, 16) users; None where a user is not linked."""
        return [self.link_ids[at] if at >= 0 else None for at in locate(self.pseudonyms, pseudonyms).tolist()]

    def users(self, link_ids: list[str], pseudonyms: np.ndarray) -> np.ndarray:
        """Rows of (n_users, 16) sorted pseudonyms that (m,) link ids stand for; (m,) int64, -1 where there is none."""
        at = {link_id: position for position, link_id in enumerate(self.link_ids)}
        rows = locate(pseudonyms, self.pseudonyms)
        return np.fromiter((rows[at[link_id]] if link_id in at else -1 for link_id in link_ids), dtype=np.int64, count=len(link_ids))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Links:
    """Links of one domain, by partner, sorted by name.

    Attributes:
        by_partner: links with each partner that the file names.
        n_duplicates: rows that repeated an earlier one and were dropped.
    """

    by_partner: dict[str, PartnerLinks]
    n_duplicates: int = 0

    @property
    def partners(self) -> tuple[str, ...]:
        return tuple(self.by_partner)

    def with_partner(self, partner: str) -> PartnerLinks:
        """Links with a partner; empty where nobody is linked there."""
        nobody = PartnerLinks(pseudonyms=np.zeros((0, PSEUDONYM_BYTES), dtype=np.uint8), link_ids=[])
        return self.by_partner.get(partner, nobody)


def read_links(source: Source, *, pseudonym_key: bytes, columns: LinkColumns | None = None) -> Links:
    """Reads links from CSV, Parquet, JSON lines or a table of a database. A header without rows means that nobody is linked.

    Raises:
        DataError: the file cannot be read or a column is missing; names file and column.
        InvalidInteraction: a field is missing or malformed, a user has two link ids with one partner, or two users share one; names file,
            rows and column.
    """
    source = as_source(source)
    columns = columns or LinkColumns()
    frame = read_table(source, columns.wanted(), lambda rows: rows).with_row_index("row", offset=1)
    frame = frame.filter(pl.any_horizontal(pl.col("user", "partner", "link").is_not_null()))
    checks = [
        (columns.user, pl.col("user").is_null(), "is missing"),
        (columns.partner, pl.col("partner").is_null(), "is missing"),
        (columns.partner, ~pl.col("partner").str.contains(_PARTNER), "is no name of a domain (small letters, digits, '-' and '_')"),
        (columns.link, pl.col("link").is_null(), "is missing"),
        (columns.link, ~pl.col("link").str.contains(_TOKEN), "is no token of at most 64 letters, digits and -_.:~+/="),
    ]
    for name, wrong, what in checks:
        _refuse(source, frame.filter(wrong), f"'{name}' {what}")
    distinct = frame.unique(subset=["user", "partner", "link"], keep="first", maintain_order=True)
    repeated = pl.struct("user", "partner").is_first_distinct().not_()
    _refuse(source, distinct.filter(repeated), f"'{columns.user}' has another '{columns.link}' with the same partner in an earlier row")
    shared = pl.struct("partner", "link").is_first_distinct().not_()
    _refuse(source, distinct.filter(shared), f"'{columns.link}' belongs to another user with the same partner in an earlier row")
    by_partner = {}
    for name in sorted(distinct["partner"].unique().to_list()):
        part = distinct.filter(pl.col("partner") == name)
        pseudonyms = pseudonym(pseudonym_key, part["user"])
        order = sort_order(pseudonyms)
        by_partner[name] = PartnerLinks(pseudonyms=pseudonyms[order], link_ids=part["link"].gather(order).to_list())
    return Links(by_partner=by_partner, n_duplicates=len(frame) - len(distinct))


def _refuse(source: Source, wrong: pl.DataFrame, what: str) -> None:
    if len(wrong):
        raise InvalidInteraction(f"{source}: {numbered(wrong['row'].to_numpy())}: {what}", do=advice_on(source))
