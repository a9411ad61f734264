"""What private passports have in common, and those of partners, in the tables of the register."""

from __future__ import annotations

import sqlite3

import numpy as np

from .public_projection import PrivateTerms, Projection

Received = tuple[PrivateTerms, list[str], np.ndarray]
"""Terms, n link ids, sorted, and (n, k) float32 vectors."""

_COLUMNS = "epsilon, space_version, text_dimension, dimension, arrays"
_Row = tuple[float, str, int, int, bytes]


def keep_terms(database: sqlite3.Connection, source: str, terms: PrivateTerms) -> None:
    """Keeps what private passports of a source have in common, once."""
    database.execute("INSERT INTO terms_in VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", (source, terms.digest, *_row(terms)))


def fix_own_terms(database: sqlite3.Connection, terms: PrivateTerms, *, asked: int) -> None:
    """Fixes what this domain's own draws have in common, for life: the first call counts.

    Args:
        asked: how many dimensions the settings ask for; a small interest space has fewer.
    """
    database.execute("INSERT INTO private_terms VALUES (1, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", (*_row(terms), asked))


def own_terms(database: sqlite3.Connection) -> tuple[PrivateTerms, int] | None:
    """What this domain's own draws have in common, and how many dimensions were asked for; None before the first."""
    row = database.execute(f"SELECT {_COLUMNS}, asked FROM private_terms").fetchone()
    return None if row is None else (_terms(row[:5]), int(row[5]))


def received(database: sqlite3.Connection, source: str, *, now: int) -> list[Received]:
    """The valid private passports of one source, by what they have in common.

    Args:
        now: unix seconds; expired passports are left out.
    """
    found = []
    kept = database.execute(f"SELECT terms, {_COLUMNS} FROM terms_in WHERE source = ? ORDER BY terms", (source,)).fetchall()
    for digest, *row in kept:
        passports = database.execute(
            "SELECT link_id, vector FROM passports_in WHERE source = ? AND terms = ? AND expires > ? ORDER BY link_id",
            (source, digest, now),
        ).fetchall()
        if passports:
            terms = _terms((row[0], row[1], row[2], row[3], row[4]))
            vectors = np.frombuffer(b"".join(vector for _, vector in passports), dtype="<f4").reshape(len(passports), terms.dimension)
            found.append((terms, [link_id for link_id, _ in passports], vectors.astype(np.float32)))
    return found


def _row(terms: PrivateTerms) -> _Row:
    projection = terms.projection
    return float(terms.epsilon), projection.space_version, projection.text_dimension, projection.dimension, projection.to_bytes()


def _terms(row: _Row) -> PrivateTerms:
    epsilon, space_version, text_dimension, dimension, arrays = row
    projection = Projection.from_bytes(arrays, space_version=space_version, text_dimension=text_dimension, dimension=dimension)
    return PrivateTerms(epsilon=epsilon, projection=projection)
