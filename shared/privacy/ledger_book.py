"""What a ledger's events add up to. The same rules read an old file and check a new event, so that no file can say what no run could do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import AuditError, LedgerBroken, LedgerError
from .budget import Budget, Life
from .ledger_schema import FORMAT, UNSIGNED_FORMAT, Event, mechanism_of
from .mechanism import Mechanism
from .receipts import SignedReceipt
from .signing import holds, key_message

_ROUNDING = 1e-9
"""Of epsilon: a later version of an accountant may give another last digit."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """A run as it was admitted, and how far it came.

    Attributes:
        mechanism: of one round.
        permitted: intents it may make in all; lowered to `used` when the plan was cut short.
        used: intents it made.
        attempts: round -> last attempt at it.
        committed: round -> sha256 of the bytes that left.
        signature: the coordinator's, on the run's contract; None where the run was not signed.
    """

    run_id: str
    config_hash: str
    mechanism: Mechanism
    rounds: int
    reserve: int
    permitted: int
    decided_by: str
    signature: str | None = None
    used: int = 0
    attempts: dict[int, int] = field(default_factory=dict)
    committed: dict[int, str] = field(default_factory=dict)

    @property
    def open_intents(self) -> int:
        """Intents that can still be made: none once every round is committed, because a committed round is never computed again."""
        return self.permitted - self.used if len(self.committed) < self.rounds else 0

    @property
    def reserved(self) -> Mechanism:
        """All open intents as one record; ask only where there are any."""
        return self.mechanism.for_steps(self.mechanism.steps * self.open_intents)


class Book:
    """State of a ledger after a number of events.

    Attributes:
        verify_key: the public key in force, which signs the next event; None before one was named (format 1).
        keys: every key there was, in order.
        signed_from: number of the first signed event; None where nothing is signed.
        raised: whether more is permitted than the first genesis did: by a ceiling event, or because an old ceiling was booked.
        releases: release id -> its event.
        cites: the coordinator's last receipt of a lost ledger, as genesis cites it: it holds, and is of this domain.
    """

    def __init__(self) -> None:
        self.format = FORMAT
        self.verify_key: str | None = None
        self.keys: list[str] = []
        self.signed_from: int | None = None
        self.raised = False
        self.booked_delta = 0.0
        self.cites: SignedReceipt | None = None
        self.releases: dict[str, Event] = {}
        self.domain = ""
        self.private = True
        self.budget = Budget(ceiling_epsilon=0.0, delta=0.0, interval=0.0)
        self.plans: dict[str, Plan] = {}
        self.intents = 0
        self.last_refusal: dict[str, object] | None = None
        self._spent: dict[Mechanism, int] = {}
        self._first_plan: Mechanism | None = None
        self._order: float | None = None
        self._adaptive = False
        self._begun = False

    @property
    def adaptive(self) -> bool:
        """Whether parameters may have depended on outputs: a second run, a raised ceiling, or a release outside the plan."""
        return self._adaptive or len(self.plans) > 1

    @property
    def order(self) -> float | None:
        return self._order

    @property
    def spent(self) -> tuple[Mechanism, ...]:
        """Every intent and release, equal ones put together."""
        return tuple(mechanism.for_steps(mechanism.steps * times) for mechanism, times in self._spent.items())

    @property
    def life(self) -> Life:
        reserved = tuple(plan.reserved for plan in self.plans.values() if plan.open_intents)
        return Life(spent=self.spent, reserved=reserved, first_plan=self._first_plan, adaptive=self.adaptive, order=self._order)

    def key_of(self, event: Event) -> str | None:
        """The key that has to sign the next event; None where it has to be unsigned."""
        named: str | None = event.payload.get("verify_key")  # genesis and migration name the key that signs them
        return self.verify_key if self.verify_key is not None else named

    def apply(self, event: Event) -> None:
        """Adds one event, whose fields were checked. Whether its signature holds is for others to check; here, that there is one.

        Raises:
            LedgerBroken: when no run could have written it at this point.
        """
        if (event.kind == "genesis") == self._begun:
            raise _broken(event, "a ledger has one genesis, and it comes first")
        if (self.key_of(event) is None) != (event.signature is None):
            raise _broken(event, "it is not signed" if event.signature is None else "it is signed before a key was named")
        if self.signed_from is None and event.signature is not None:
            self.signed_from = event.seq
        self.last_refusal = dict(event.payload) if event.kind == "refused" else None
        rule = getattr(self, f"_{event.kind}", None)
        if rule is not None:
            rule(event)

    def apply_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self.apply(event)

    def _genesis(self, event: Event) -> None:
        said = event.payload
        self._begun = True
        self.domain, self.private, self.format = said["domain"], said["private"], said["format"]
        if self.format not in (UNSIGNED_FORMAT, FORMAT):
            raise _broken(event, "its format is none that this version reads")
        ceiling, delta, interval = (float.fromhex(said[name]) for name in ("ceiling_epsilon", "delta", "pld_interval"))
        try:
            Budget.of(ceiling, delta)
        except LedgerError:
            raise _broken(event, "its ceiling or delta has no meaning") from None
        if not 0.0 < interval <= ceiling or (math.isinf(ceiling) and self.private):
            raise _broken(event, "its ceiling or interval has no meaning")
        booked = self._booked(event, ceiling)
        self.budget = Budget(ceiling_epsilon=ceiling, delta=delta, interval=interval, booked=booked)
        self._name_key(said.get("verify_key"))

    def _booked(self, event: Event, ceiling: float) -> float:
        """What a lost ledger counts for; the count of intents goes on from the receipt that is cited."""
        said = event.payload
        if said["booked_epsilon"] is None:
            if said["booked_delta"] is not None or said["last_receipt"] is not None:
                raise _broken(event, "it cites a lost ledger and books nothing for it")
            return 0.0
        booked = float.fromhex(said["booked_epsilon"])
        delta = 0.0 if said["booked_delta"] is None else float.fromhex(said["booked_delta"])
        if not 0.0 < booked < ceiling or not delta > 0.0 or not delta + float.fromhex(said["delta"]) < 1.0:
            raise _broken(event, "what it books for a lost ledger has no meaning")
        self.raised, self.booked_delta = True, delta
        if said["last_receipt"] is not None:
            self.cites = self._cited(event, said["last_receipt"], booked)
            self.intents = self.cites.count_of_intents
        return booked

    def _cited(self, event: Event, text: str, booked: float) -> SignedReceipt:
        """The last receipt of the lost ledger. It may be of another key, which was lost too or replaced: whose it is, audits remark."""
        try:
            receipt = SignedReceipt.from_json(text)
        except AuditError:
            raise _broken(event, "the receipt that it cites is none") from None
        if not receipt.holds():
            raise _broken(event, "the receipt that it cites is not signed by the key it names")
        if receipt.domain != self.domain:
            raise _broken(event, "the receipt that it cites is of another domain")
        if receipt.epsilon_spent > booked * (1.0 + _ROUNDING):
            proved = f"{receipt.epsilon_spent:.4g}"
            raise _broken(event, f"it books epsilon {booked:.4g} for a lost ledger that spent {proved} by the receipt that it cites")
        return receipt

    def _name_key(self, verify_key: str | None) -> None:
        self.verify_key = verify_key
        if verify_key is not None:
            self.keys.append(verify_key)

    def _key(self, event: Event) -> None:
        said = event.payload
        old, new = said["old_verify_key"], said["new_verify_key"]
        message = key_message(self.domain, old, new)
        if old != self.verify_key or new in self.keys:
            raise _broken(event, "a new key follows the key in force, and is a new one")
        for key, signature in ((old, said["old_signature"]), (new, said["new_signature"])):
            if not holds(key, message, bytes.fromhex(signature)):
                raise _broken(event, "the two keys did not both sign the change")
        self._name_key(new)

    def _migration(self, event: Event) -> None:
        said = event.payload
        if (said["from_format"], said["to_format"], self.format) != (UNSIGNED_FORMAT, FORMAT, UNSIGNED_FORMAT):
            raise _broken(event, "it changes a format that the ledger does not have")
        self.format = FORMAT
        self._name_key(said["verify_key"])

    def _schedule(self, event: Event) -> None:
        said = event.payload
        mechanism = mechanism_of(said["mechanism"])
        known = self.plans.get(said["run_id"])
        if known is not None:
            said_before = (known.config_hash, known.mechanism, known.rounds, known.reserve, known.signature)
            says = (said["config_hash"], mechanism, said["rounds"], said["reserve"], said["plan_signature"])
            if said_before != says or said["permitted_intents"] != known.used:
                raise _broken(event, "a plan may only be cut short to what was spent")
            known.permitted = known.used
            return
        if said["permitted_intents"] != said["rounds"] + said["reserve"]:
            raise _broken(event, "a plan is admitted as a whole")
        plan = mechanism.for_steps(mechanism.steps * said["permitted_intents"])
        self._admitted(event, plan)
        self.plans[said["run_id"]] = Plan(
            run_id=said["run_id"],
            config_hash=said["config_hash"],
            mechanism=mechanism,
            rounds=said["rounds"],
            reserve=said["reserve"],
            permitted=said["permitted_intents"],
            decided_by=said["decided_by"],
            signature=said["plan_signature"],
        )

    def _admitted(self, event: Event, plan: Mechanism) -> None:
        if plan.kind == "none" and self.private:
            raise _broken(event, "a step without noise stands in a ledger that claims to be private")
        order = event.payload["filter_order"]
        if self._order is None and order is not None:
            self._order = float.fromhex(order)
        elif order is not None and float.fromhex(order) != self._order:
            raise _broken(event, "the order of the filter is fixed for life")
        if self._order is None and plan.kind != "none":
            raise _broken(event, "the first plan fixes the order of the filter")
        if self._first_plan is None:
            self._first_plan = plan

    def _intent(self, event: Event) -> None:
        said = event.payload
        plan = self.plans.get(said["run_id"])
        if plan is None or plan.used >= plan.permitted:
            raise _broken(event, "an intent stands outside every plan")
        number, mechanism = said["round"], mechanism_of(said["mechanism"])
        if mechanism != plan.mechanism or said["config_hash"] != plan.config_hash:
            raise _broken(event, "an intent is not what was admitted")
        if not number <= plan.rounds or number in plan.committed or said["attempt"] != plan.attempts.get(number, 0) + 1:
            raise _broken(event, "an intent is out of turn")
        plan.used += 1
        plan.attempts[number] = said["attempt"]
        self.intents += 1
        self._spent[mechanism] = self._spent.get(mechanism, 0) + 1

    def _commit(self, event: Event) -> None:
        said = event.payload
        plan = self.plans.get(said["run_id"])
        if plan is None or said["round"] in plan.committed or plan.attempts.get(said["round"]) != said["attempt"]:
            raise _broken(event, "a commit has no intent")
        plan.committed[said["round"]] = said["payload_sha256"]

    def _release(self, event: Event) -> None:
        name = event.payload["release_id"]
        if name in self.releases:
            raise _broken(event, "a release stands here twice")
        self.releases[name] = event
        mechanism = mechanism_of(event.payload["mechanism"])
        self._admitted(event, mechanism)
        self._adaptive = True
        self._spent[mechanism] = self._spent.get(mechanism, 0) + 1

    def _ceiling(self, event: Event) -> None:
        before, now = (float.fromhex(event.payload[name]) for name in ("previous_epsilon", "ceiling_epsilon"))
        if before != self.budget.ceiling_epsilon or not before < now:
            raise _broken(event, "a ceiling is raised from what it was")
        if now == float("inf") and self.private:
            raise _broken(event, "a private ledger has a finite ceiling")
        self._adaptive = self.raised = True
        self.budget = dataclasses.replace(self.budget, ceiling_epsilon=now)


def _broken(event: Event, why: str) -> LedgerBroken:
    return LedgerBroken(f"event {event.seq} of the ledger: {why}", do="Do not train with this ledger. Restore the newest file.")
