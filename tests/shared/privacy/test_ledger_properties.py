"""Whatever is asked of a ledger, in whatever order: spent never decreases, never under-counts, and a refusal changes nothing."""

from __future__ import annotations

import contextlib
import tempfile
from functools import cache
from pathlib import Path

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.errors import BudgetExhausted, LedgerError
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.mechanism import Mechanism
from tests.shared.privacy.bookshop import KEYS

DELTA, CEILING = 1e-5, 5.0
RUNS = ("autumn", "winter", "spring")
SIGMAS = (1.0, 3.0)
runs, sigmas = st.sampled_from(RUNS), st.sampled_from(SIGMAS)


def one_round(sigma: float) -> Mechanism:
    return Mechanism(kind="poisson_gaussian", sampling_rate=0.05, noise_multiplier=sigma, clip_norm=0.5, grid=0.0, dimension=10, steps=20)


@cache
def epsilon(counts: tuple[int, ...], order: float | None) -> float:
    """Recomputed by the library itself: PLD of so many rounds at each sigma, or RDP at one order."""
    if not any(counts):
        return 0.0
    accountant = PLDAccountant(value_discretization_interval=1e-3) if order is None else RdpAccountant(orders=[order])
    for sigma, count in zip(SIGMAS, counts, strict=True):
        if count:
            accountant.compose(dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(sigma)), 20 * count)
    return float(accountant.get_epsilon(DELTA))


class LifeOfALedger(RuleBasedStateMachine):
    """The model counts what was confirmed, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.sqlite"
        self.ledger = Ledger.create(self.path, signer=KEYS, domain="books", ceiling_epsilon=CEILING, delta=DELTA, set_by="the bookshop")
        self.plans: dict[str, tuple[float, int, int]] = {}
        self.spent: list[tuple[str, int, float]] = []
        self.ended: set[str] = set()
        self.committed: dict[tuple[str, int], str] = {}
        self.highest = 0.0

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()

    @initialize(run=runs, sigma=sigmas, rounds=st.integers(1, 8), reserve=st.integers(0, 3))
    def admit_first(self, run: str, sigma: float, rounds: int, reserve: int) -> None:
        self.admit(run, sigma, rounds, reserve)

    @rule(run=runs, sigma=sigmas, rounds=st.integers(1, 8), reserve=st.integers(0, 3))
    def admit(self, run: str, sigma: float, rounds: int, reserve: int) -> None:
        before = (self.ledger.count_of_intents, self.ledger.epsilon_spent(), self.ledger.epsilon_reserved())
        plan = (sigma, rounds, reserve)
        refusal: LedgerError | None = None
        try:
            self.ledger.admit(run_id=run, config_hash=run, mechanism=one_round(sigma), rounds=rounds, reserve=reserve)
        except LedgerError as error:
            refusal = error
        event(f"admit: {type(refusal).__name__}, run {len(self.plans) + 1}")
        if refusal is None:
            assert self.plans.setdefault(run, plan) == plan
            return
        assert (self.ledger.count_of_intents, self.ledger.epsilon_spent(), self.ledger.epsilon_reserved()) == before
        assert self.plans.get(run) != plan or run in self.ended
        if isinstance(refusal, BudgetExhausted):
            assert refusal.requested > refusal.remaining or refusal.remaining == 0.0

    @precondition(lambda self: self.plans)
    @rule(data=st.data(), times=st.integers(1, 3), numbers=st.lists(st.integers(1, 4), min_size=1, max_size=5))
    def attempts(self, data: st.DataObject, times: int, numbers: list[int]) -> None:
        run = data.draw(st.sampled_from(sorted(self.plans)))
        for number in numbers * times:
            self.intent(run, number, None)

    @rule(run=runs, number=st.integers(1, 9), sigma=st.none() | sigmas)
    def intent(self, run: str, number: int, sigma: float | None) -> None:
        mechanism = one_round(sigma or self.plans.get(run, (1.0, 0, 0))[0])
        before = (self.ledger.count_of_intents, self.ledger.epsilon_spent())
        try:
            attempt = self.ledger.intent(
                run_id=run, round=number, mechanism=mechanism, config_hash=run, bundle_digest="b", code_version="1"
            )
        except LedgerError as error:
            event(f"intent: {type(error).__name__}")
            assert (self.ledger.count_of_intents, self.ledger.epsilon_spent()) == before
            return
        event(f"intent: made, of {len(self.plans)} runs")
        planned, rounds, reserve = self.plans[run]
        assert mechanism == one_round(planned)
        assert number <= rounds
        assert (run, number) not in self.committed
        assert run not in self.ended
        assert attempt == 1 + sum((run, number) == (r, n) for r, n, _ in self.spent)
        self.spent.append((run, number, planned))
        assert sum(r == run for r, _, _ in self.spent) <= rounds + reserve

    @precondition(lambda self: self.spent)
    @rule(data=st.data(), digest=st.sampled_from(["d" * 64, "e" * 64]))
    def commit(self, data: st.DataObject, digest: str) -> None:
        run, number, _ = data.draw(st.sampled_from(self.spent))
        attempt = sum((run, number) == (r, n) for r, n, _ in self.spent)
        with contextlib.suppress(LedgerError):
            self.ledger.commit(run_id=run, round=number, attempt=attempt, payload_sha256=digest)
            assert self.committed.setdefault((run, number), digest) == digest

    @precondition(lambda self: self.plans)
    @rule(data=st.data())
    def end_run(self, data: st.DataObject) -> None:
        spent, run = self.ledger.epsilon_spent(), data.draw(st.sampled_from(sorted(self.plans)))
        self.ledger.end_run(run)
        self.ended.add(run)
        assert self.ledger.epsilon_spent() == spent
        assert self.ledger.intents_left(run) == 0

    @rule()
    def power_goes_out_and_comes_back(self) -> None:
        head = self.ledger.head_hash
        self.ledger.close()
        self.ledger = Ledger.open(self.path, signer=KEYS)
        assert self.ledger.head_hash == head

    @invariant()
    def spent_is_every_intent_that_was_confirmed_and_never_less(self) -> None:
        assert self.ledger.count_of_intents == len(self.spent)
        order = self.ledger.filter_order if len(self.plans) > 1 else None
        counts = tuple(sum(sigma == s for _, _, s in self.spent) for sigma in SIGMAS)
        spent = self.ledger.epsilon_spent()
        assert abs(spent - epsilon(counts, order)) <= 1e-9
        assert self.highest <= spent <= CEILING
        assert spent <= self.ledger.epsilon_reserved() <= CEILING
        self.highest = spent

    @invariant()
    def the_file_says_the_same_to_anybody(self) -> None:
        events = read_events(self.path)
        intents = [(said.payload["run_id"], said.payload["round"]) for said in events if said.kind == "intent"]
        assert intents == [(run, number) for run, number, _ in self.spent]
        for (run, number), digest in self.committed.items():
            assert self.ledger.committed(run, number) == digest


TestLifeOfALedger = LifeOfALedger.TestCase
TestLifeOfALedger.settings = settings(max_examples=10, stateful_step_count=20, suppress_health_check=[HealthCheck.too_slow])
