"""What a ledger's events add up to. The same rules read an old file and check a new event, so that no file can say what no run could do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import LedgerBroken
from .budget import Budget, Life
from .ledger_schema import Event, mechanism_of
from .mechanism import Mechanism


@dataclass(slots=True, kw_only=True)
class Plan:
    """A run as it was admitted, and how far it came.

    Attributes:
        mechanism: of one round.
        permitted: intents it may make in all; lowered to `used` when the plan was cut short.
        used: intents it made.
        attempts: round -> last attempt at it.
        committed: round -> sha256 of the bytes that left.
    """

    run_id: str
    config_hash: str
    mechanism: Mechanism
    rounds: int
    reserve: int
    permitted: int
    decided_by: str
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
    """State of a ledger after a number of events."""

    def __init__(self) -> None:
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

    def apply(self, event: Event) -> None:
        """Adds one event, whose fields were checked.

        Raises:
            LedgerBroken: when no run could have written it at this point.
        """
        if (event.kind == "genesis") == self._begun:
            raise _broken(event, "a ledger has one genesis, and it comes first")
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
        self.domain, self.private = said["domain"], said["private"]
        values = [float.fromhex(said[name]) for name in ("ceiling_epsilon", "delta", "pld_interval")]
        self.budget = Budget(ceiling_epsilon=values[0], delta=values[1], interval=values[2])
        if not 0.0 < values[1] < 1.0 or not 0.0 < values[2] <= values[0] or (values[0] == float("inf") and self.private):
            raise _broken(event, "its ceiling, delta or interval has no meaning")

    def _schedule(self, event: Event) -> None:
        said = event.payload
        mechanism = mechanism_of(said["mechanism"])
        known = self.plans.get(said["run_id"])
        if known is not None:
            same = (known.config_hash, known.mechanism, known.rounds, known.reserve)
            if same != (said["config_hash"], mechanism, said["rounds"], said["reserve"]) or said["permitted_intents"] != known.used:
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
        self._adaptive = True
        self.budget = Budget(ceiling_epsilon=now, delta=self.budget.delta, interval=self.budget.interval)


def _broken(event: Event, why: str) -> LedgerBroken:
    return LedgerBroken(f"event {event.seq} of the ledger: {why}", do="Do not train with this ledger. Restore the newest file.")
