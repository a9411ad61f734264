"""What an open ledger says."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from .budget import epsilon_of
from .ledger_book import Book
from .ledger_file import LedgerFile
from .ledger_schema import Event, mechanism_of
from .mechanism import Mechanism


class LedgerReading:
    """A ledger as far as it is read; `ledger.Ledger` also writes.

    Args:
        file: open, and read up to its head.
        book: what its events add up to.
    """

    def __init__(self, file: LedgerFile, book: Book) -> None:
        self._file = file
        self._book = book
        self._priced: tuple[tuple[object, ...], float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hands the ledger to the next process. Twice is as good as once."""
        self._file.close()

    @property
    def domain(self) -> str:
        return self._book.domain

    @property
    def private(self) -> bool:
        """What the genesis says; false means NOT PRIVATE, whatever the events are."""
        return self._book.private

    @property
    def ceiling_epsilon(self) -> float:
        return self._book.budget.ceiling_epsilon

    @property
    def delta(self) -> float:
        return self._book.budget.delta

    @property
    def claimed_delta(self) -> float:
        """Delta of the statement about the whole life: this ledger's, and that of a lost one before it."""
        return self._book.booked_delta + self._book.budget.delta

    @property
    def booked_epsilon(self) -> float:
        """What counts as spent from the start, because an earlier ledger was lost; 0 otherwise."""
        return self._book.budget.booked

    @property
    def verify_key(self) -> str | None:
        """The public key in force, in hex; None in an unsigned ledger of format 1."""
        return self._book.verify_key

    @property
    def head_hash(self) -> str:
        return self._file.head_hash

    @property
    def count_of_events(self) -> int:
        return self._file.head_seq

    @property
    def count_of_intents(self) -> int:
        """Intents of this ledger and, where it follows on a lost one, of that one too, as its last receipt counted them."""
        return self._book.intents

    @property
    def adaptive(self) -> bool:
        """True from the second run, a raised ceiling or a release on: a Renyi filter decides, and PLD is information."""
        return self._book.adaptive

    @property
    def filter_order(self) -> float | None:
        """Renyi order of the filter, fixed by the first schedule."""
        return self._book.order

    def epsilon_spent(self) -> float:
        """Cost of every intent and release so far, by the accountant that decides in this life; infinite where a step added no noise."""
        spent = self._book.spent
        known = (spent, self._book.adaptive)
        if self._priced is None or self._priced[0] != known:
            self._priced = (known, epsilon_of(spent, self._book.budget, adaptive=self._book.adaptive, order=self._book.order))
        return self._priced[1]

    def epsilon_reserved(self) -> float:
        """Cost of everything spent or still reserved."""
        life = self._book.life
        return epsilon_of((*life.spent, *life.reserved), self._book.budget, adaptive=life.adaptive, order=life.order)

    def intents_left(self, run_id: str) -> int:
        """Intents that an admitted run may still make; 0 for one that is unknown, complete or ended."""
        plan = self._book.plans.get(run_id)
        return 0 if plan is None else plan.open_intents

    def committed(self, run_id: str, round: int) -> str | None:
        """sha256 of the bytes that left for a round, or None."""
        plan = self._book.plans.get(run_id)
        return None if plan is None else plan.committed.get(round)

    def spent_events(self) -> list[Mechanism]:
        """Every intent and release in order, committed or not."""
        return [mechanism_of(event.payload["mechanism"]) for event in self.events() if event.kind in ("intent", "release")]

    def intents(self) -> Iterator[Event]:
        return (event for event in self.events() if event.kind == "intent")

    def events(self) -> Iterator[Event]:
        """Every event, read from disk and checked again."""
        return self._file.events()

    def newest_first(self) -> Iterator[Event]:
        """The same backwards: what stands near the head is found without reading the rest."""
        return self._file.newest_first()
