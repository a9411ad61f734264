"""A domain's three tables, wherever the partner has them: files, or one snapshot of a database.

What is prepared from them is named by their version (`PartnerData.version`). A file's version is its name, size and time of change. A
table of PostgreSQL has none: one pass at the server counts its rows and adds up their hashes. A file of SQLite is a file.

A database is written all the time, and a run should not train on another state in each round. So what a run finds at its first look is
kept beside the run (``run/database.json``), and nobody connects again until another run greets this client or somebody is forgotten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import polars as pl

from shared.config import RunConfig
from shared.errors import ConfigError, DataError

from .data.catalogue import Catalogue, CatalogueColumns, read_catalogue
from .data.database import address_of, password_of
from .data.links import LinkColumns, Links, read_links
from .data.sources import ColumnNames, ReadResult, read
from .data.tables import Column, Source, read_table
from .durable_files import write_file
from .settings import DATABASE_KEYS, ClientSettings

if TYPE_CHECKING:
    from .data.sql import Snapshot, SqlTable

TABLES = ("items", "interactions", "links")
"""Their names in the settings, too."""


class PartnerData:
    """The tables of a domain. Opened by `partner_data`."""

    def __init__(self, settings: ClientSettings) -> None:
        data = settings.data
        self._settings = settings
        texts = tuple(name.strip() for name in data.text_columns.split(",") if name.strip())
        self._items = CatalogueColumns(item=data.item_column, texts=texts)
        self._interactions = ColumnNames(
            user=data.user_column, item=data.item_column, time=data.time_column, rating=data.rating_column or None
        )
        self._links = LinkColumns(user=data.user_column)

    def source(self, name: str) -> Source | None:
        """One of `TABLES`; None where the domain has none."""
        raise NotImplementedError

    def require(self) -> None:
        """Looks for the tables, not into them.

        Raises:
            DataError: one is missing.
        """
        raise NotImplementedError

    def version(self) -> list[Any]:
        """The version of the tables that the run in hand works with; of JSON types, and for this machine only.

        Raises:
            DataError: a table is missing or cannot be read.
        """
        raise NotImplementedError

    def latest(self) -> list[Any]:
        """The version of the tables as they are now; what is read from here on is of this version."""
        raise NotImplementedError

    def keep(self) -> None:
        """Lets the run in hand go on with this version."""

    def close(self) -> None:
        """Ends a connection; nothing can be read afterwards."""

    def catalogue(self) -> Catalogue:
        """Raises what `read_catalogue` raises."""
        return read_catalogue(self._there("items"), columns=self._items)

    def interactions(
        self,
        catalogue: Catalogue,
        key: bytes,
        *,
        max_items_per_user: int,
        without: np.ndarray | None = None,
        rating_range: tuple[float, float] | None = None,
    ) -> ReadResult:
        """Raises what `sources.read` raises."""
        data = self._settings.data
        return read(
            self._there("interactions"),
            columns=self._interactions,
            catalogue=catalogue,
            pseudonym_key=key,
            time=cast(Literal["unix_s", "order"], data.time),
            unknown_items=cast(Literal["refuse", "drop"], data.unknown_items),
            max_items_per_user=max_items_per_user,
            without=without,
            rating_range=rating_range,
        )

    def links(self, key: bytes) -> Links | None:
        """None where nobody linked accounts. Raises what `read_links` raises."""
        source = self.source("links")
        return None if source is None else read_links(source, pseudonym_key=key, columns=self._links)

    def links_if_there(self, key: bytes) -> Links | None:
        """As `links`; a file that is gone links nobody."""
        source = self.source("links")
        return None if isinstance(source, Path) and not source.is_file() else self.links(key)

    def user_ids(self) -> Iterator[pl.Series]:
        """The partner's own ids in each table that names users, some more than once. A file that is gone names nobody."""
        for name in ("interactions", "links"):
            source = self.source(name)
            if source is not None and not (isinstance(source, Path) and not source.is_file()):
                column = Column(role="user", name=self._settings.data.user_column)
                yield read_table(source, [column], lambda rows: rows.unique()).get_column("user")

    def _there(self, name: str) -> Source:
        source = self.source(name)
        if source is None:
            raise ConfigError(f"'data.{name}' names no table", do="Mend the [data] section of partner.toml.")
        return source


class _Files(PartnerData):
    def source(self, name: str) -> Path | None:
        named = getattr(self._settings.data, name)
        return self._settings.path(named) if named else None

    def require(self) -> None:
        self.version()

    def version(self) -> list[Any]:
        stamps: list[Any] = []
        for path in map(self.source, TABLES):
            if path is not None and not path.is_file():
                what = f"domain '{self._settings.domain}': there is no file {path.name}"
                raise DataError(what, do="Mend the [data] section of partner.toml.")
            stamps.append(None if path is None else [path.name, path.stat().st_size, path.stat().st_mtime_ns])
        return stamps

    def latest(self) -> list[Any]:
        return self.version()


class _Database(PartnerData):
    def __init__(self, settings: ClientSettings) -> None:
        super().__init__(settings)
        self._snapshot: Snapshot | None = None
        self._version: list[Any] | None = None
        self._is_latest = False
        self._kept = settings.at_home("run") / "database.json"

    def source(self, name: str) -> SqlTable | None:
        data = self._settings.data
        named, query = getattr(data, name), getattr(data, f"{name}_query")
        if query:
            return self._opened().query(f"data.{name}_query", query)
        return self._opened().table(named) if named else None

    def require(self) -> None:
        for name, columns in self._columns():
            source = self.source(name)
            if source is not None:
                source.look(columns)

    def version(self) -> list[Any]:
        if self._version is None:
            self._version = self._of_the_run()
        return self.latest() if self._version is None else self._version

    def latest(self) -> list[Any]:
        if self._version is None or not self._is_latest:
            sources = [(self.source(name), columns) for name, columns in self._columns()]
            self._version = [None if source is None else source.stamp(columns) for source, columns in sources]
            self._is_latest = True  # and stays it: the snapshot is of one moment
        return self._version

    def keep(self) -> None:
        run = self._run()
        if run and self._version is not None and self._of_the_run() != self._version:
            record = {"run": run, "of": self._named(), "version": self._version}
            write_file(self._kept, json.dumps(record).encode())

    def close(self) -> None:
        if self._snapshot is not None:
            self._snapshot.close()

    def _opened(self) -> Snapshot:
        if self._snapshot is None:
            try:
                from .data.sql import Snapshot
                from .data.sql_dialects import missing_extra
            except ImportError:
                raise missing_extra() from None
            data, base = self._settings.data, self._settings.base
            self._snapshot = Snapshot(
                address_of(data.url, base),
                password=password_of(data.password_env, data.password_file, base),
                connect_timeout_s=data.connect_timeout_s,
                statement_timeout_s=data.statement_timeout_s,
            )
        return self._snapshot

    def _columns(self) -> Iterator[tuple[str, list[Column]]]:
        yield "items", self._items.wanted()
        yield "interactions", self._interactions.wanted(cast(Literal["unix_s", "order"], self._settings.data.time))
        yield "links", self._links.wanted()

    def _run(self) -> str:
        """The run that greeted this client last; empty where none did."""
        path = self._settings.at_home("run") / "run_id"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _named(self) -> str:
        """What is read, as the settings name it: with other tables a kept version means nothing."""
        how = ("password_env", "password_file", "connect_timeout_s", "statement_timeout_s")
        settings = {name: value for name, value in dataclasses.asdict(self._settings.data).items() if name not in how}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def _of_the_run(self) -> list[Any] | None:
        try:
            record = json.loads(self._kept.read_bytes())
            fits = record["run"] == self._run() and record["of"] == self._named()
            return list(record["version"]) if fits else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


@contextlib.contextmanager
def partner_data(settings: ClientSettings) -> Iterator[PartnerData]:
    """The tables of a domain; a database is connected to when it is first asked for something.

    Raises:
        ConfigError: its password is not where the settings say, or this installation cannot read databases.
    """
    data = _Database(settings) if settings.data.url else _Files(settings)
    try:
        yield data
    finally:
        data.close()


def rating_range(settings: ClientSettings, config: RunConfig) -> tuple[float, float] | None:
    """Lowest and highest rating that the run's method can read; None where it reads none, or the partner has none."""
    if config.model.method != "knowledge-mf" or not settings.data.rating_column:
        return None
    return config.training.rating_low, config.training.rating_low + config.training.rating_span


def without_places(settings: ClientSettings) -> dict[str, Any]:
    """The settings of the data that change what is read from given tables."""
    return {name: value for name, value in dataclasses.asdict(settings.data).items() if name not in (*TABLES, *DATABASE_KEYS)}
