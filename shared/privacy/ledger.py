"""The ledger of one domain, for life: what was promised, what was spent, what left.

::

    with Ledger.open(path) as ledger:
        ledger.admit(run_id=..., config_hash=..., mechanism=one_round, rounds=15, reserve=1)   # the whole plan, or BudgetExhausted
        attempt = ledger.intent(run_id=..., round=1, mechanism=one_round, ...)                 # on disk BEFORE the first private gradient
        ...                                                                                    # train
        ledger.commit(run_id=..., round=1, attempt=attempt, payload_sha256=...)                # BEFORE the bytes leave

Spent is every intent, committed or not. Only events whose number and content follow from the public schedule may enter: passports, links
and erasures have a register of their own. See `ledger_schema` for the format and `budget` for who decides.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import BudgetExhausted, LedgerError
from .budget import Budget, decide, epsilon_of
from .ledger_book import Book, Plan
from .ledger_file import LedgerFile
from .ledger_schema import FORMAT, NO_HASH, UNIT, Event, canonical, check_fields, event_hash, mechanism_of
from .mechanism import Mechanism


def read_events(path: Path) -> list[Event]:
    """Every event of a ledger, its chain and fields checked; beside any writer, and without the rules of a run.

    Raises:
        LedgerBroken: when the chain or the schema do not hold.
    """
    file = LedgerFile.read(Path(path))
    try:
        return list(file.load())
    finally:
        file.close()


class Ledger:
    """An open ledger. One process writes (`LedgerLocked` for the next), any number read."""

    def __init__(self, file: LedgerFile, book: Book) -> None:
        self._file = file
        self._book = book
        self._priced: tuple[tuple[object, ...], float] | None = None

    @classmethod
    def create(cls, path: Path, *, domain: str, ceiling_epsilon: float, delta: float, set_by: str, private: bool = True) -> Ledger:
        """Begins a ledger with its genesis, and opens it.

        Args:
            ceiling_epsilon: epsilon that this domain's whole life may cost; infinite only where ``private`` is false.
            delta: of every number in this ledger.
            set_by: who decided the ceiling.
            private: False for simulations without privacy and for test builds; whatever they make is stamped NOT PRIVATE.

        Raises:
            LedgerError: when there is a ledger already, or a value has no meaning.
        """
        budget = Budget.of(float(ceiling_epsilon), float(delta))
        if private and not math.isfinite(ceiling_epsilon):
            raise LedgerError("a private ledger has a finite ceiling", do="Only a ledger that says NOT PRIVATE may have none.")
        payload = {
            "format": FORMAT,
            "unit": UNIT,
            "domain": domain,
            "ceiling_epsilon": budget.ceiling_epsilon.hex(),
            "delta": budget.delta.hex(),
            "pld_interval": budget.interval.hex(),
            "set_by": set_by,
            "private": private,
            "booked_epsilon": None,
            "booked_delta": None,
            "last_receipt": None,
        }
        event, text = _next_event("genesis", payload, 0, NO_HASH)
        LedgerFile.create(Path(path), event, text)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> Ledger:
        """Opens a ledger and checks all of it.

        Raises:
            LedgerLocked: when another process, or another handle, has it open for writing.
            LedgerBroken: when chain, sequence or schema do not hold, or it says what no run could have done.
        """
        file = LedgerFile.read(Path(path)) if read_only else LedgerFile.write(Path(path))
        try:
            book = Book()
            book.apply_all(file.load())
        except BaseException:
            file.close()
            raise
        return cls(file, book)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hands the ledger to the next process. Twice is as good as once."""
        self._file.close()

    # --- what it says ------------------------------------------------------------------------------------------------------------------
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
    def head_hash(self) -> str:
        return self._file.head_hash

    @property
    def count_of_intents(self) -> int:
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

    # --- what it does ------------------------------------------------------------------------------------------------------------------
    def admit(self, *, run_id: str, config_hash: str, mechanism: Mechanism, rounds: int, reserve: int) -> None:
        """Reserves a run's whole plan: ``rounds + reserve`` intents of ``mechanism``. Again with the same plan (a resume): nothing happens.

        Args:
            mechanism: of ONE round; its steps are the steps of a round.
            reserve: further intents, for attempts that are lost.

        Raises:
            BudgetExhausted: when the plan would pass the ceiling; recorded as ``refused``, nothing is reserved.
            LedgerError: when another plan was admitted under this run id, the run was ended, or the plan does not fit into this ledger.
        """
        if type(rounds) is not int or type(reserve) is not int or rounds < 1 or reserve < 0:
            raise LedgerError("a plan has at least one round and no negative reserve")
        known = self._book.plans.get(run_id)
        if known is not None:
            if (known.config_hash, known.mechanism, known.rounds, known.reserve) != (config_hash, mechanism, rounds, reserve):
                raise LedgerError("another plan was admitted under this run id", do="Start a new run for a new plan.")
            if known.permitted != rounds + reserve:
                raise LedgerError("this run was ended", do="Start a new run.")
            return
        if mechanism.kind == "none" and self.private:
            do = "Simulations without privacy use a ledger of their own."
            raise LedgerError("a step without noise cannot enter a private ledger", do=do)
        what = f"the plan of {rounds} rounds and {reserve} in reserve does not fit below the ceiling of domain '{self.domain}'"
        asked = {"run_id": run_id, "config_hash": config_hash, "mechanism": mechanism.to_record()}
        try:
            decision = decide(self._book.budget, self._book.life, mechanism, rounds + reserve, what=what)
        except BudgetExhausted as refusal:
            self._refuse(refusal, {**asked, "round": 0, "intents": rounds + reserve, "why": "the plan would pass the ceiling"})
            raise
        plan = {"rounds": rounds, "reserve": reserve, "permitted_intents": decision.permitted_intents, "decided_by": decision.decided_by}
        order = None if decision.order is None else decision.order.hex()
        reserved = {"epsilon_reserved": decision.epsilon_reserved.hex(), "filter_order": order, "plan_signature": None}
        self._append("schedule", {**asked, **plan, **reserved})

    def intent(self, *, run_id: str, round: int, mechanism: Mechanism, config_hash: str, bundle_digest: str, code_version: str) -> int:
        """Books one attempt at a round as spent. It is on disk when this returns; touch no private data before.

        Args:
            round: absolute, from 1.
            bundle_digest: sha256 of the code bundle that trains.

        Returns:
            The attempt's number, from 1.

        Raises:
            BudgetExhausted: when the run's plan and reserve are used up, or the run was not admitted; recorded as ``refused``.
            LedgerError: when this is not what was admitted, or the round is committed already.
        """
        plan = self._book.plans.get(run_id)
        what = {"run_id": run_id, "round": round, "mechanism": mechanism.to_record(), "config_hash": config_hash}
        if plan is None:
            raise self._outside(what, mechanism, f"the run of round {round} was not admitted to the ledger of domain '{self.domain}'")
        if (plan.mechanism, plan.config_hash) != (mechanism, config_hash):
            raise LedgerError(f"round {round} asks for another mechanism or configuration than was admitted")
        if type(round) is not int or not 1 <= round <= plan.rounds:
            raise LedgerError(f"round {round} is not one of the {plan.rounds} rounds that were admitted")
        if round in plan.committed:
            raise LedgerError(f"round {round} is committed", do="A committed round is never computed again: send its bytes again.")
        if plan.used >= plan.permitted:
            raise self._outside(what, mechanism, f"round {round}: plan and reserve of this run are used up in domain '{self.domain}'")
        attempt = plan.attempts.get(round, 0) + 1
        self._append("intent", {**what, "attempt": attempt, "bundle_digest": bundle_digest, "code_version": code_version})
        return attempt

    def commit(self, *, run_id: str, round: int, attempt: int, payload_sha256: str) -> None:
        """Records what leaves after an attempt, before it leaves. Again with the same digest: nothing happens.

        Raises:
            LedgerError: when the attempt is not the last one at its round, or other bytes were committed.
        """
        plan = self._known(run_id)
        before = plan.committed.get(round)
        if plan.attempts.get(round) != attempt or before not in (None, payload_sha256):
            raise LedgerError(f"round {round} has no open attempt {attempt}", do="Ask for a new attempt; the lost one stays spent.")
        if before is None:
            self._append("commit", {"run_id": run_id, "round": round, "attempt": attempt, "payload_sha256": payload_sha256})

    def end_run(self, run_id: str) -> None:
        """Cuts a run's plan short to what it spent, so that the rest of its reservation is free for another run. It cannot go on after.

        Raises:
            LedgerError: when the run is unknown.
        """
        plan = self._known(run_id)
        if plan.permitted == plan.used:
            return
        book = self._book
        others = [p.reserved for p in book.plans.values() if p.open_intents and p is not plan]
        left = epsilon_of((*book.spent, *others), book.budget, adaptive=book.adaptive, order=book.order)
        asked = {"run_id": run_id, "config_hash": plan.config_hash, "mechanism": plan.mechanism.to_record()}
        cut = {"rounds": plan.rounds, "reserve": plan.reserve, "permitted_intents": plan.used, "decided_by": plan.decided_by}
        order = None if book.order is None else book.order.hex()
        self._append("schedule", {**asked, **cut, "epsilon_reserved": left.hex(), "filter_order": order, "plan_signature": None})

    def raise_ceiling(self, ceiling_epsilon: float, *, raised_by: str, why: str) -> None:
        """Permits more than the genesis did. Every later report says so; from here on the Renyi filter decides.

        Raises:
            LedgerError: when it is not above the ceiling there is, or not finite.
        """
        if not self.ceiling_epsilon < ceiling_epsilon < math.inf:
            raise LedgerError("a ceiling can only be raised, to a finite epsilon")
        now = {"ceiling_epsilon": float(ceiling_epsilon).hex(), "previous_epsilon": self.ceiling_epsilon.hex()}
        self._append("ceiling", {**now, "epsilon_spent": self.epsilon_spent().hex(), "raised_by": raised_by, "why": why})

    def note(self, text: str) -> None:
        """Adds a text that follows from the public schedule; never anything learned from data."""
        self._append("note", {"text": text})

    def _known(self, run_id: str) -> Plan:
        plan = self._book.plans.get(run_id)
        if plan is None:
            raise LedgerError("the run was not admitted to this ledger")
        return plan

    def _outside(self, what: dict[str, Any], mechanism: Mechanism, text: str) -> BudgetExhausted:
        """The refusal of one intent that no plan covers, already recorded."""
        life, budget = self._book.life, self._book.budget
        spent = self.epsilon_spent()
        after = epsilon_of((*life.spent, mechanism), budget, adaptive=life.adaptive, order=life.order)
        more = after - spent if math.isfinite(spent) else 0.0
        refusal = BudgetExhausted(text, requested=max(0.0, more), remaining=0.0, ceiling=budget.ceiling_epsilon, delta=budget.delta)
        self._refuse(refusal, {**what, "intents": 1, "why": "no plan covers the attempt"})
        return refusal

    def _refuse(self, refusal: BudgetExhausted, what: dict[str, Any]) -> None:
        """Records a refusal; one that is repeated at once, word for word, is recorded once, so that asking again does not fill the disk."""
        numbers = {"requested": refusal.requested, "remaining": refusal.remaining, "ceiling_epsilon": refusal.ceiling}
        payload = {**what, **{name: float(number).hex() for name, number in numbers.items()}}
        if payload != self._book.last_refusal:
            self._append("refused", payload)

    def _append(self, kind: str, payload: dict[str, Any]) -> None:
        event, text = _next_event(kind, payload, self._file.head_seq, self._file.head_hash)
        self._file.append(event, text)
        self._book.apply(event)


def _next_event(kind: str, payload: dict[str, Any], head_seq: int, head_hash: str) -> tuple[Event, str]:
    check_fields(kind, payload)
    text = canonical(payload)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    seq = head_seq + 1
    digest = event_hash(seq, kind, now, text, head_hash)
    return Event(seq=seq, kind=kind, time_utc=now, payload=payload, prev_hash=head_hash, hash=digest), text
