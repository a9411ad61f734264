"""A table of a database against the same rows in files: seconds, and the most memory, each measured in a process of its own.

PostgreSQL where a server is installed (a new one, on this machine, so that the network costs nothing), SQLite always. The rows: one user in
ten rows, 100,000 items, all times distinct. A process reads and groups them by user, as preparation does before texts are encoded.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import polars as pl  # noqa: E402

from tests.client.data import postgres  # noqa: E402

ITEMS = 100_000
POSTGRESQL = postgres.find()
AIMS = {"sqlite: memory against Parquet": ("<=", 1.25)} | ({"postgresql: memory against Parquet": ("<=", 1.25)} if POSTGRESQL else {})

_CHILD = """
import json, resource, sys, time
from pathlib import Path
from client.data.catalogue import Catalogue
from client.data.database import address_of
from client.data.histories import by_user
from client.data.sources import read
place, password, items = sys.argv[1], sys.argv[2], int(sys.argv[3])
catalogue = Catalogue(item_ids=[f"i{n}" for n in range(items)], texts=["text"] * items)
start = time.perf_counter()
stamped = 0.0
if "://" in place:
    from client.data.sources import ColumnNames
    from client.data.sql import Snapshot
    source = Snapshot(address_of(place), password=password or None).table("interactions")
    source.stamp(ColumnNames(rating=None).wanted("unix_s"))
    stamped = time.perf_counter() - start
else:
    source = Path(place)
result = read(source, catalogue=catalogue, pseudonym_key=bytes(32))
seconds = time.perf_counter() - start
everyone = by_user(result.interactions)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"rows": result.report.n_kept, "seconds": seconds, "stamped": stamped, "peak": peak}))
"""


def _measured(place: str, password: str = "") -> dict[str, float]:
    run = [sys.executable, "-c", _CHILD, place, password, str(ITEMS)]
    done = subprocess.run(
        run, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1"}
    )
    return dict(json.loads(done.stdout))


def _rows(rows: int) -> str:
    """The rows as a SELECT that both databases understand; users and items are scattered by multiplication with a large prime."""
    return (
        f"SELECT 'user-' || (n * 7919 % {max(rows // 10, 1)}) AS user_id, 'i' || (n * 104729 % {ITEMS}) AS item_id,"
        " 1200000000 + n AS timestamp FROM numbers"
    )


def _sqlite(path: Path, rows: int) -> None:
    numbers = f"WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows - 1})"
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute(f"CREATE TABLE interactions AS {numbers} {_rows(rows)}")
        made.commit()


@contextlib.contextmanager
def _postgresql(rows: int) -> Iterator[tuple[str, str]]:
    assert POSTGRESQL is not None
    with postgres.running(POSTGRESQL) as server:
        server.run(
            f"CREATE TABLE interactions AS WITH numbers AS (SELECT CAST(n AS bigint) AS n FROM generate_series(0, {rows - 1}) AS n)"
            f" {_rows(rows)}",
            "VACUUM ANALYZE interactions",
        )
        yield server.url(), postgres.PASSWORD


def run(quick: bool = True) -> dict[str, float]:
    rows = 200_000 if quick else 10_000_000
    found = {}
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name:
        database, parquet, text = (Path(name) / f"interactions.{suffix}" for suffix in ("db", "parquet", "csv"))
        _sqlite(database, rows)
        found["sqlite"] = _measured(f"sqlite:///{database}")
        query = pl.read_database(
            f"SELECT * FROM interactions LIMIT {rows}", sqlite3.connect(database), iter_batches=True, batch_size=500_000
        )
        pl.concat(list(query)).write_parquet(parquet)
        database.unlink()
        pl.scan_parquet(parquet).sink_csv(text)
        found["parquet"], found["csv"] = _measured(str(parquet)), _measured(str(text))
    if POSTGRESQL is not None:
        with _postgresql(rows) as (url, password):
            found["postgresql"] = _measured(url, password)
    figures: dict[str, float] = {}
    for kind, one in found.items():
        assert one["rows"] == rows, (kind, one)
        figures[f"{kind}: {rows:,} rows, seconds"] = one["seconds"]
        figures[f"{kind}: {rows:,} rows, most memory in MiB"] = one["peak"] / 2**20
        if one["stamped"]:
            figures[f"{kind}: {rows:,} rows, seconds for the version"] = one["stamped"]
        if kind in ("sqlite", "postgresql"):
            figures[f"{kind}: seconds against Parquet"] = one["seconds"] / found["parquet"]["seconds"]
            figures[f"{kind}: seconds against CSV"] = one["seconds"] / found["csv"]["seconds"]
            figures[f"{kind}: memory against Parquet"] = one["peak"] / found["parquet"]["peak"]
    return figures
