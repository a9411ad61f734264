"""Private passports: one draw for each person, for life.

A person's draw is one release of the direction of their interest by PrivUnit, in a few public coordinates. It is made when the first
passport of theirs is due, and every other one, to whichever target and at whatever time, is the same bytes: fresh noise would average out,
and each further draw would cost epsilon_u again. New data and new interest spaces change nothing about it. So the claim is one for a
person's whole life at this domain, whoever puts together what they received: local differential privacy of epsilon_u for what the person
did. That they are a user of this domain is not hidden: everybody who is linked gets one, with however few interactions, because a least
number of them would tell who has fewer. The epsilon_u of several sources of one person add up.

The order, each step on the disk before the next begins::

    terms     epsilon and public coordinates, the same for everybody, for life
    draws     of all that are due and have none, in one transaction of the register; the first writer counts
    witness   a note beside the keys of how many draws there are, so that a lost or older register is noticed, not drawn anew
    read back what is exported is what the register holds, never what was just drawn

A process killed before the transaction has shown its draws to nobody; one killed after it finds them. Of two processes at once the second
finds those of the first. The noise is the operating system's, in 64 bit.

Who is forgotten loses the vector; the mark stays, and with it the epsilon that was booked: what it paid for has left. A person who comes
back under the same id gets no private passport, and is not drawn again: the mark of a forgotten user keeps them out of everything for good,
and a second draw would double what was promised once. Under another id they are another person to this domain, and pay as one. But who
reads passports knows people by their links: a link that carried a draw never carries another, though the user ids of the domain changed.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import ConfigError, DataError, PassportError, StateError

from .durable_files import write_file
from .preparation import PreparedDomain
from .private_terms import fix_own_terms, own_terms
from .privunit import LEAST_DIMENSION, PrivUnit
from .public_projection import PrivateTerms, Projection
from .register import Register
from .settings import ClientSettings
from .training.noise import NoiseSource, SystemNoise

_LOG = logging.getLogger("isthmus.passports")
_RESTORE = (
    "Restore home/register.sqlite: it holds the draws that went out, and a second draw of the same people would cost their epsilon_u again."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """Passports for one target.

    Attributes:
        terms: what they have in common.
        rows: (n,) positions, among the users asked for, of those who get one: all but the forgotten.
        vectors: (n, k) float32, as the register holds them.
    """

    terms: PrivateTerms
    rows: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """What private passports cost, for the partner's own eyes.

    Attributes:
        epsilon: of each person's one draw.
        dimensions: k.
        people: who were drawn; each is booked epsilon once.
        forgotten: how many of them were forgotten since: their vector is gone, their epsilon stays booked.
    """

    epsilon: float
    dimensions: int
    people: int
    forgotten: int


def draw_once(
    settings: ClientSettings,
    prepared: PreparedDomain,
    rows: np.ndarray,
    space_version: str,
    interests_of: Callable[[np.ndarray], np.ndarray],
    *,
    noise: NoiseSource | None = None,
) -> Drawn:
    """The private vectors of some users; whoever has none is drawn now, once and for life.

    Args:
        rows: (n,) rows of ``prepared.everyone``, distinct.
        space_version: the interest space in which their interests are read.
        interests_of: rows -> (m, d) interests in that space; asked for those only who have no draw.
        noise: the operating system's when left out; any other is for tests.
    Raises:
        ConfigError: epsilon_u or the number of coordinates differ from those of the draws that were made.
        StateError: the register holds fewer draws than were made.
        PassportError: the interest space has too few coordinates, or was made by another language model than the draws.
    """
    marks = [bytes(mark) for mark in prepared.everyone.pseudonyms[rows]]
    with Register.of(settings) as register:
        witness = DrawWitness(settings)
        witness.check(register)
        terms = _fixed_terms(settings, register, prepared, space_version)
        with register.reading() as database:
            known = {row[0] for row in database.execute("SELECT mark FROM private_draws")}
        missing = np.array([at for at, mark in enumerate(marks) if mark not in known], dtype=np.int64)
        missing = missing[~_sent_before(register, prepared, rows[missing])]
        if len(missing):
            read = terms.projection.read(interests_of(rows[missing]), prepared.space(space_version))
            vectors = PrivUnit.of(terms.dimension, terms.epsilon).release(read, noise or SystemNoise())
            _keep(register, [marks[at] for at in missing], vectors)
        witness.raise_to_what_is_there(register)
        return _read_back(register, terms, marks)


def booked(register: Register) -> Booked | None:
    """What was booked so far; None where nobody was ever drawn."""
    with register.reading() as database:
        fixed = own_terms(database)
        people, there = database.execute("SELECT count(*), count(vector) FROM private_draws").fetchone()
    if fixed is None:
        return None
    return Booked(epsilon=fixed[0].epsilon, dimensions=fixed[0].dimension, people=people, forgotten=people - there)


class DrawWitness:
    """A note of how many draws were made. It is written after them and before anything is sent, and never falls."""

    def __init__(self, settings: ClientSettings) -> None:
        self._path: Path = settings.at_home("keys") / "private_draws.json"

    def check(self, register: Register) -> None:
        """Raises StateError where the register holds fewer draws than were made."""
        with register.reading() as database:
            there = _count(database)
        if there < self.draws():
            raise StateError("the register holds fewer private draws than were made", do=_RESTORE)

    def raise_to_what_is_there(self, register: Register) -> None:
        with register.transaction() as database:  # one at a time, or a slower process would lower it
            there = _count(database)
            if there > self.draws():
                write_file(self._path, json.dumps({"private_draws": there}).encode())

    def draws(self) -> int:
        """Draws at least; 0 where none was ever made.

        Raises:
            DataError: the file is damaged.
        """
        try:
            return int(json.loads(self._path.read_bytes())["private_draws"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"'{self._path.name}' cannot be read", do="Restore it from a copy of home/keys.") from None


def _fixed_terms(settings: ClientSettings, register: Register, prepared: PreparedDomain, space_version: str) -> PrivateTerms:
    """What the first draw fixed; this one fixes it where it is the first."""
    chosen = settings.passports
    space = prepared.space(space_version)
    wanted = PrivateTerms(epsilon=chosen.epsilon_u, projection=Projection.of(space, chosen.private_dimensions))
    if wanted.dimension < LEAST_DIMENSION:
        raise PassportError(
            f"a private passport needs {LEAST_DIMENSION} coordinates at least",
            do="Agree with the coordinator on a larger 'model.dimension'.",
        )
    with register.transaction() as database:
        register.hold_to_key(database)  # a draw is known by its user's pseudonym: under another key all would be drawn again
        fix_own_terms(database, wanted, asked=chosen.private_dimensions)
        terms, asked = own_terms(database) or (wanted, chosen.private_dimensions)
    if (terms.epsilon, asked) != (chosen.epsilon_u, chosen.private_dimensions):
        raise ConfigError(
            f"private passports of this domain were begun with epsilon_u = {terms.epsilon:g} and private_dimensions = {asked}",
            do="Write that into the [passports] section: a draw is for life, and another one would cost epsilon_u again.",
        )
    if not terms.projection.fits(space):
        raise PassportError(
            "the private passports of this domain were drawn with the vectors of another language model than this run's",
            do="Take part with that language model, or send exact passports.",
        )
    return terms


def _sent_before(register: Register, prepared: PreparedDomain, rows: np.ndarray) -> np.ndarray:
    """(n,) bool: of users without a draw, whose link with somebody carried one already, of another user id."""
    found = np.zeros(len(rows), dtype=bool)
    for target, linked in prepared.links.items() if len(rows) else ():
        with register.reading() as database:
            query = "SELECT link_id FROM passports_out WHERE target = ? AND epsilon IS NOT NULL"
            sent = [row[0] for row in database.execute(query, (target,))]
        if sent:
            found |= np.isin(rows, linked.rows[np.isin(linked.link_ids, sent)])
    if found.any():
        _LOG.warning(
            "%d linked users get no private passport: their links carried those of other user ids, and a second draw would cost again",
            int(found.sum()),
        )
    return found


def _keep(register: Register, marks: list[bytes], vectors: np.ndarray) -> None:
    """All draws or none of them; who was drawn or forgotten meanwhile stays as they are."""
    now = int(time.time())
    rows = [(mark, vector.astype("<f4").tobytes(), now, mark) for mark, vector in zip(marks, vectors, strict=True)]
    with register.transaction() as database:
        database.executemany(
            "INSERT INTO private_draws SELECT ?, ?, ?"
            " WHERE NOT EXISTS (SELECT 1 FROM forgotten_users WHERE mark = ?) ON CONFLICT DO NOTHING",
            rows,
        )


def _read_back(register: Register, terms: PrivateTerms, marks: list[bytes]) -> Drawn:
    with register.reading() as database:
        there = dict(database.execute("SELECT mark, vector FROM private_draws WHERE vector IS NOT NULL"))
    rows = np.array([at for at, mark in enumerate(marks) if mark in there], dtype=np.int64)
    vectors = np.frombuffer(b"".join(there[marks[at]] for at in rows), dtype="<f4").reshape(len(rows), terms.dimension)
    return Drawn(terms=terms, rows=rows, vectors=vectors.astype(np.float32))


def _count(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT count(*) FROM private_draws").fetchone()[0])
