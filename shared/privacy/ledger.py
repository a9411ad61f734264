"""The ledger of one domain, for life: what was promised, what was spent, what left.

::

    with Ledger.open(path, signer=keys) as ledger:
        ledger.admit(run_id=..., config_hash=..., mechanism=one_round, rounds=15, reserve=1)   # the whole plan, or BudgetExhausted
        attempt = ledger.intent(run_id=..., round=1, mechanism=one_round, ...)                 # on disk BEFORE the first private gradient
        ...                                                                                    # train
        ledger.commit(run_id=..., round=1, attempt=attempt, payload_sha256=...)                # BEFORE the bytes leave

Spent is every intent and release, committed or not. Every event is signed by the partner's key.
Only events whose number and content follow from the public schedule may enter: passports, links
and erasures have a register of their own. See `ledger_schema` for the format and `budget` for who decides.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import BudgetExhausted, LedgerError, WrongKey
from .budget import Decision, decide, decide_release, epsilon_of
from .ledger_beginning import begin, begin_after_loss, next_event, replay, upgrade
from .ledger_book import Book, Plan
from .ledger_file import LedgerFile
from .ledger_reading import LedgerReading
from .ledger_schema import Event
from .mechanism import Mechanism
from .signing import Signer, holds, key_message


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


class Ledger(LedgerReading):
    """An open ledger. One process writes (`LedgerLocked` for the next), any number read."""

    def __init__(self, file: LedgerFile, book: Book, signer: Signer | None) -> None:
        super().__init__(file, book)
        self._signer = signer

    @classmethod
    def create(
        cls, path: Path, *, signer: Signer, domain: str, ceiling_epsilon: float, delta: float, set_by: str, private: bool = True
    ) -> Ledger:
        """Begins a ledger with its genesis, and opens it.

        Args:
            signer: whose key signs every event.
            ceiling_epsilon: epsilon that this domain's whole life may cost; infinite only where ``private`` is false.
            delta: of every number in this ledger.
            set_by: who decided the ceiling.
            private: False for simulations without privacy and for test builds; whatever they make is stamped NOT PRIVATE.

        Raises:
            LedgerError: when there is a ledger already, or a value has no meaning.
        """
        begin(path, signer=signer, domain=domain, ceiling_epsilon=ceiling_epsilon, delta=delta, set_by=set_by, private=private)
        return cls.open(path, signer=signer)

    @classmethod
    def restart(
        cls,
        path: Path,
        *,
        signer: Signer,
        domain: str,
        ceiling_epsilon: float,
        delta: float,
        set_by: str,
        booked_epsilon: float,
        booked_delta: float,
        last_receipt: str | None,
    ) -> Ledger:
        """Begins a ledger where another one was lost: what that one permitted counts as spent, all of it.

        Basic composition: whatever the lost ledger allowed was (booked_epsilon, booked_delta)-DP, and what follows is chosen after it, so
        epsilons and deltas add up.

        Args:
            ceiling_epsilon: the new ceiling, above what is booked.
            booked_epsilon: the whole ceiling of the lost ledger, with what that one had booked itself.
            booked_delta: its delta, likewise.
            last_receipt: the coordinator's last receipt, as canonical JSON; None where no round was ever answered.

        Raises:
            LedgerError: when a ledger still stands at this place, or a value has no meaning; or the receipt is none, of another domain, was
                changed, or proves more epsilon than is booked.
        """
        begin_after_loss(
            path,
            signer=signer,
            domain=domain,
            ceiling_epsilon=ceiling_epsilon,
            delta=delta,
            set_by=set_by,
            booked_epsilon=booked_epsilon,
            booked_delta=booked_delta,
            last_receipt=last_receipt,
        )
        return cls.open(path, signer=signer)

    @classmethod
    def open(cls, path: Path, *, signer: Signer | None = None, read_only: bool = False) -> Ledger:
        """Opens a ledger and checks chain, rules and the signature of its last event, which by the chain covers all before it.

        Args:
            signer: the partner's key, needed for writing.

        Raises:
            LedgerLocked: when another process, or another handle, has it open for writing.
            LedgerBroken: when chain, sequence or schema do not hold, or it says what no run could have done.
            WrongKey: when it is signed with another key than the signer's.
        """
        file = LedgerFile.read(Path(path)) if read_only else LedgerFile.write(Path(path))
        try:
            book = replay(file)
            if not read_only:
                _must_sign(book, signer)
        except BaseException:
            file.close()
            raise
        return cls(file, book, None if read_only else signer)

    @staticmethod
    def upgrade(path: Path, *, signer: Signer, why: str) -> None:
        """Changes an unsigned ledger of format 1 to this format; from its ``migration`` event on it is signed. Again: nothing happens.

        Raises:
            LedgerBroken: when it does not hold as it is.
        """
        upgrade(path, signer=signer, why=why)

    def admit(
        self, *, run_id: str, config_hash: str, mechanism: Mechanism, rounds: int, reserve: int, plan_signature: str | None = None
    ) -> None:
        """Reserves a run's whole plan: ``rounds + reserve`` intents of ``mechanism``. Again with the same plan (a resume): nothing happens.

        Args:
            mechanism: of ONE round; its steps are the steps of a round.
            reserve: further intents, for attempts that are lost.
            plan_signature: the coordinator's signature on the run's contract, in hex, which the caller checked; None for an unsigned run.

        Raises:
            BudgetExhausted: when the plan would pass the ceiling; recorded as ``refused``, nothing is reserved.
            LedgerError: when another plan was admitted under this run id, the run was ended, or the plan does not fit into this ledger.
        """
        if type(rounds) is not int or type(reserve) is not int or rounds < 1 or reserve < 0:
            raise LedgerError("a plan has at least one round and no negative reserve")
        known = self._book.plans.get(run_id)
        if known is not None:
            before = (known.config_hash, known.mechanism, known.rounds, known.reserve, known.signature)
            if before != (config_hash, mechanism, rounds, reserve, plan_signature):
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
        reserved = {"epsilon_reserved": decision.epsilon_reserved.hex(), "filter_order": _order(decision)}
        self._append("schedule", {**asked, **plan, **reserved, "plan_signature": plan_signature})

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
        self.may_intend(run_id=run_id, round=round, mechanism=mechanism, config_hash=config_hash)
        what = {"run_id": run_id, "round": round, "mechanism": mechanism.to_record(), "config_hash": config_hash}
        plan = self._known(run_id)
        attempt = plan.attempts.get(round, 0) + 1
        self._append("intent", {**what, "attempt": attempt, "bundle_digest": bundle_digest, "code_version": code_version})
        return attempt

    def may_intend(self, *, run_id: str, round: int, mechanism: Mechanism, config_hash: str) -> None:
        """Whether `intent` would book this attempt: to be asked before any data are opened. Nothing is booked.

        Raises:
            BudgetExhausted: as `intent` does; recorded as ``refused``.
            LedgerError: as `intent` does.
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
        reserved = {"epsilon_reserved": left.hex(), "filter_order": order, "plan_signature": plan.signature}
        self._append("schedule", {**asked, **cut, **reserved})

    def raise_ceiling(self, ceiling_epsilon: float, *, raised_by: str, why: str) -> None:
        """Permits more than the genesis did. Every later report says so; from here on the Renyi filter decides.

        Raises:
            LedgerError: when it is not above the ceiling there is, or not finite; or when it is below what the filter counts for all that
                is spent and reserved: nothing could follow, and the life would look as if it had passed its ceiling.
        """
        if not self.ceiling_epsilon < ceiling_epsilon < math.inf:
            raise LedgerError("a ceiling can only be raised, to a finite epsilon")
        life = self._book.life
        counted = epsilon_of((*life.spent, *life.reserved), self._book.budget, adaptive=True, order=life.order)
        if self.private and not counted <= ceiling_epsilon:
            do = "Raise it further, or leave it: what is admitted needs no higher ceiling."
            raise LedgerError(f"after a raise the Renyi filter decides, which counts {counted:.2f} as spent and reserved already", do=do)
        now = {"ceiling_epsilon": float(ceiling_epsilon).hex(), "previous_epsilon": self.ceiling_epsilon.hex()}
        self._append("ceiling", {**now, "epsilon_spent": self.epsilon_spent().hex(), "raised_by": raised_by, "why": why})

    def release(self, *, release_id: str, purpose: str, mechanism: Mechanism, config_hash: str) -> Event:
        """Books a mechanism of its own as spent. It is on disk when this returns; touch no private data before.

        Args:
            release_id: names the release; again with the same one and the same mechanism, nothing is spent and the event there is returned.
            purpose: ``popularity``, ``metric``, ``count`` or ``moments``.
            mechanism: of the whole release.
            config_hash: of the parameters that are not in the mechanism.

        Raises:
            BudgetExhausted: when it would pass the ceiling; recorded as ``refused``.
            LedgerError: when another release has this id, or a step without noise would enter a private ledger.
        """
        asked = {"mechanism": mechanism.to_record(), "config_hash": config_hash}
        there = self._book.releases.get(release_id)
        if there is not None:
            if any(there.payload[name] != value for name, value in {**asked, "purpose": purpose}.items()):
                raise LedgerError("another release was made under this id", do="Choose a new id for a new release.")
            return there
        if mechanism.kind == "none" and self.private:
            raise LedgerError("a step without noise cannot enter a private ledger", do="Choose a noise multiplier above 0.")
        try:
            what = f"a release ({purpose}) of domain '{self.domain}'"
            decision = decide_release(self._book.budget, self._book.life, mechanism, what=what)
        except BudgetExhausted as refusal:
            self._refuse(refusal, {**asked, "run_id": release_id, "round": 0, "intents": 1, "why": "the release would pass the ceiling"})
            raise
        said = {"release_id": release_id, "purpose": purpose, **asked, "payload_sha256": None}
        return self._append("release", {**said, "decided_by": decision.decided_by, "filter_order": _order(decision)})

    def rotate_key(self, new: Signer) -> None:
        """Replaces the key: the event is signed by the old one, both sign the change, and the new one signs from here on.

        Raises:
            LedgerError: when the new key was in force before.
        """
        old = self._must_write()
        if new.verify_key in self._book.keys:
            raise LedgerError("the new key was in force before", do="Make a new key.")
        message = key_message(self.domain, old.verify_key, new.verify_key)
        keys = {"old_verify_key": old.verify_key, "new_verify_key": new.verify_key}
        signed = {"old_signature": old.sign(message), "new_signature": new.sign(message)}
        if not (holds(old.verify_key, message, signed["old_signature"]) and holds(new.verify_key, message, signed["new_signature"])):
            raise LedgerError("a key signs nothing that its own public key confirms; nothing was written", do="Make a new key.")
        self._append("key", {**keys, **{name: signature.hex() for name, signature in signed.items()}})
        self._signer = new

    def audited(self, *, tier: int, verdict: str, code_digest: str, code_version: str, summary: str, report_sha256: str) -> Event:
        """Records the verdict of a canary run, made on synthetic users and a ledger of its own.

        Args:
            tier: 1 (conformance) or 2 (one-run audit).
            verdict: ``passed`` or ``refuted``.
            code_digest: of the code that was tested, as intents name it.
            summary: figures, as canonical JSON.
            report_sha256: of the whole verdict.
        """
        code = {"code_digest": code_digest, "code_version": code_version}
        return self._append("audit", {"tier": tier, "verdict": verdict, **code, "summary": summary, "report_sha256": report_sha256})

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

    def _must_write(self) -> Signer:
        if self._signer is None:
            raise LedgerError("the ledger was opened for reading only")
        return self._signer

    def _append(self, kind: str, payload: dict[str, Any]) -> Event:
        event = next_event(kind, payload, self._file.head_seq, self._file.head_hash, self._must_write())
        self._file.append(event)
        self._book.apply(event)
        return event


def _must_sign(book: Book, signer: Signer | None) -> None:
    if signer is None:
        raise LedgerError("a ledger is written with the partner's key, and none was given", do="Open it for reading, or give the key.")
    if book.verify_key is None:
        do = "Run isthmus-client ledger upgrade once: from then on every event is signed."
        raise LedgerError("the ledger is of format 1, which was not signed", do=do)
    if signer.verify_key != book.verify_key:
        do = "Use the keys folder of the partner that this ledger belongs to; a lost key is a lost ledger."
        raise WrongKey("the ledger is signed with another key than this partner's", do=do)


def _order(decision: Decision) -> str | None:
    return None if decision.order is None else decision.order.hex()
