"""Whatever is asked of a ledger, in whatever order: spent never decreases, never under-counts, a refusal changes nothing, all is signed."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.errors import BudgetExhausted, LedgerError, WrongKey
from shared.privacy import audit
from shared.privacy.findings import Status
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism
from shared.privacy.signing import SigningPair
from tests.shared.privacy.bookshop import KEYS, audited, receipt_of_a_lost_ledger

DELTA, CEILING = 1e-5, 5.0
RUNS = ("autumn", "winter", "spring")
RELEASES = ("how many", "what is liked")
SIGMAS, WIDE = (1.0, 3.0), (2.0, 20.0)
"""Of a round's step, and of a release, which samples nobody."""
runs, sigmas = st.sampled_from(RUNS), st.sampled_from(SIGMAS)


def one_round(sigma: float) -> Mechanism:
    return Mechanism(kind="poisson_gaussian", sampling_rate=0.05, noise_multiplier=sigma, clip_norm=0.5, grid=0.0, dimension=10, steps=20)


def one_release(sigma: float) -> Mechanism:
    return Mechanism(kind="gaussian", sampling_rate=1.0, noise_multiplier=sigma, clip_norm=1.0, grid=0.0, dimension=3, steps=1)


@cache
def epsilon(counts: tuple[tuple[float, bool, int], ...], order: float | None) -> float:
    """Recomputed by the library itself: PLD of so many rounds or releases at each sigma, or RDP at one order."""
    if not counts:
        return 0.0
    accountant = PLDAccountant(value_discretization_interval=1e-3) if order is None else RdpAccountant(orders=[order])
    for sigma, released, count in counts:
        gaussian = dp_accounting.GaussianDpEvent(sigma)
        accountant.compose(gaussian if released else dp_accounting.PoissonSampledDpEvent(0.05, gaussian), count * (1 if released else 20))
    return float(accountant.get_epsilon(DELTA))


class LifeOfALedger(RuleBasedStateMachine):
    """The model counts what was confirmed, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.sqlite"
        self.keys = [KEYS]
        self.ceiling, self.first_ceiling, self.highest = CEILING, CEILING, 0.0
        self.booked, self.booked_delta, self.counted = 0.0, 0.0, 0
        self.ledger = Ledger.create(self.path, signer=KEYS, domain="books", ceiling_epsilon=CEILING, delta=DELTA, set_by="the bookshop")
        self.begin()

    def begin(self) -> None:
        self.plans: dict[str, tuple[float, int, int]] = {}
        self.spent: list[tuple[str, int, float]] = []
        self.ended: set[str] = set()
        self.committed: dict[tuple[str, int], str] = {}
        self.released: dict[str, float] = {}
        self.raised = False

    def teardown(self) -> None:
        self.ledger.close()
        found = audit.verify(self.path, key=self.keys[-1].verify_key)
        assert found.status is (Status.RAISED if self.raised or self.booked else Status.INTACT), found.findings
        assert (found.events, found.intents) == (self.ledger.count_of_events, len(self.spent))
        assert (found.commits, found.releases) == (len(self.committed), len(self.released))
        assert found.keys == tuple(key.verify_key for key in self.keys)
        assert abs(found.epsilon_spent - self.highest) <= 1e-9
        assert (found.ceiling_epsilon, found.genesis_ceiling, found.claimed_delta) == (
            self.ceiling,
            self.first_ceiling,
            DELTA + self.booked_delta,
        )
        self.folder.cleanup()

    @property
    def state(self) -> tuple[object, ...]:
        """Everything a refused request must leave as it was."""
        ledger = self.ledger
        numbers = (ledger.count_of_intents, ledger.epsilon_spent(), ledger.epsilon_reserved(), ledger.ceiling_epsilon, ledger.adaptive)
        return *numbers, ledger.filter_order, ledger.verify_key, tuple(ledger.intents_left(run) for run in RUNS)

    @initialize(run=runs, sigma=sigmas, rounds=st.integers(1, 8), reserve=st.integers(0, 3))
    def admit_first(self, run: str, sigma: float, rounds: int, reserve: int) -> None:
        self.admit(run, sigma, rounds, reserve)

    @rule(run=runs, sigma=sigmas, rounds=st.integers(1, 8), reserve=st.integers(0, 3))
    def admit(self, run: str, sigma: float, rounds: int, reserve: int) -> None:
        before = self.state
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
        assert self.state == before
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
        before = self.state
        try:
            attempt = self.ledger.intent(
                run_id=run, round=number, mechanism=mechanism, config_hash=run, bundle_digest="b", code_version="1"
            )
        except LedgerError as error:
            event(f"intent: {type(error).__name__}")
            assert self.state == before
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

    @rule(name=st.sampled_from(RELEASES), sigma=st.sampled_from(WIDE), purpose=st.sampled_from(["count", "count", "curiosity"]))
    def release(self, name: str, sigma: float, purpose: str) -> None:
        before, head = self.state, self.ledger.head_hash
        try:
            made = self.ledger.release(release_id=name, purpose=purpose, mechanism=one_release(sigma), config_hash="r")
        except LedgerError as error:
            event(f"release: {type(error).__name__}")
            assert self.state == before
            if not isinstance(error, BudgetExhausted):
                assert self.ledger.head_hash == head
                assert purpose != "count" or self.released.get(name, sigma) != sigma
            return
        event(f"release: made after {len(self.plans)} runs")
        assert (made.payload["release_id"], made.payload["mechanism"]) == (name, one_release(sigma).to_record())
        if name in self.released:
            assert (self.state, self.ledger.head_hash) == (before, head)
        assert self.released.setdefault(name, sigma) == sigma

    @rule(more=st.sampled_from([-1.0, 0.0, 0.01, 0.7, 4.0]))
    def raise_ceiling(self, more: float) -> None:
        before, head = self.state, self.ledger.head_hash
        try:
            self.ledger.raise_ceiling(self.ceiling + more, raised_by="the bookshop", why="another season")
        except LedgerError:
            assert more <= 0.0 or (more < 4.0 and self.ledger.filter_order is not None)
            assert (self.state, self.ledger.head_hash) == (before, head)
            return
        assert more > 0.0
        self.ceiling, self.raised = self.ceiling + more, True

    @rule(fresh=st.booleans())
    def rotate_key(self, fresh: bool) -> None:
        before = self.state
        if not fresh:
            for old in self.keys:
                with contextlib.suppress(LedgerError):
                    self.ledger.rotate_key(old)
                    raise AssertionError("a key came back")
            assert self.state == before
            return
        self.keys.append(SigningPair(bytes([len(self.keys)]) * 32))
        self.ledger.rotate_key(self.keys[-1])
        assert self.ledger.verify_key == self.keys[-1].verify_key

    @rule()
    def the_process_ends_and_another_begins(self) -> None:
        before, head = self.state, self.ledger.head_hash
        self.ledger.close()
        for old in self.keys[:-1]:
            with contextlib.suppress(WrongKey):
                Ledger.open(self.path, signer=old)
                raise AssertionError("an old key opened the ledger for writing")
        self.ledger = Ledger.open(self.path, signer=self.keys[-1])
        assert (self.state, self.ledger.head_hash) == (before, head)

    @precondition(lambda self: self.booked == 0.0)
    @rule(more=st.sampled_from([0.0, 3.0]), receipt=st.booleans())
    def the_ledger_is_lost(self, more: float, receipt: bool) -> None:
        last = receipt_of_a_lost_ledger(self.ledger.count_of_intents, epsilon=self.ledger.epsilon_spent()) if receipt else None
        count, lost = self.ledger.count_of_intents, {"booked_epsilon": self.ceiling, "booked_delta": self.ledger.claimed_delta}
        self.ledger.close()
        new = {"signer": KEYS, "domain": "books", "delta": DELTA, "set_by": "the bookshop", "last_receipt": last}
        if more == 0.0:
            with contextlib.suppress(LedgerError):
                Ledger.restart(self.path, ceiling_epsilon=self.ceiling, **new, **lost)  # type: ignore[arg-type]
                raise AssertionError("a new ledger began without room, or beside the old one")
            self.ledger = Ledger.open(self.path, signer=self.keys[-1])
            return
        event("the ledger was lost")
        self.path.unlink()
        self.ledger = Ledger.restart(self.path, ceiling_epsilon=self.ceiling + more, **new, **lost)  # type: ignore[arg-type]
        self.booked, self.booked_delta, self.counted = self.ceiling, DELTA, count if receipt else 0
        self.ceiling = self.first_ceiling = self.ceiling + more
        self.keys = [KEYS]
        self.begin()

    @invariant()
    def spent_is_everything_that_was_confirmed_and_never_less(self) -> None:
        assert self.ledger.count_of_intents == self.counted + len(self.spent)
        adaptive = len(self.plans) > 1 or bool(self.released) or self.raised
        assert self.ledger.adaptive == adaptive
        counts = Counter([(sigma, False) for _, _, sigma in self.spent] + [(sigma, True) for sigma in self.released.values()])
        grouped = tuple((sigma, released, count) for (sigma, released), count in sorted(counts.items()))
        spent = self.ledger.epsilon_spent()
        assert abs(spent - self.booked - epsilon(grouped, self.ledger.filter_order if adaptive else None)) <= 1e-9
        assert self.highest <= spent <= self.ceiling
        assert spent <= self.ledger.epsilon_reserved() <= self.ceiling == self.ledger.ceiling_epsilon
        self.highest = spent

    @invariant()
    def the_file_says_the_same_to_anybody(self) -> None:
        book, events = audited(self.path, beside_its_writer=True)  # and every event is signed by the key in force
        assert all(said.signature is not None for said in events)
        intents = [(said.payload["run_id"], said.payload["round"]) for said in events if said.kind == "intent"]
        assert intents == [(run, number) for run, number, _ in self.spent]
        assert list(book.releases) == list(self.released)
        assert book.keys == [key.verify_key for key in self.keys]
        assert (book.budget.ceiling_epsilon, book.intents, book.adaptive) == (
            self.ceiling,
            self.ledger.count_of_intents,
            self.ledger.adaptive,
        )
        for (run, number), digest in self.committed.items():
            assert self.ledger.committed(run, number) == digest


TestLifeOfALedger = LifeOfALedger.TestCase
TestLifeOfALedger.settings = settings(max_examples=10, stateful_step_count=20, suppress_health_check=[HealthCheck.too_slow])


class ManyLivesOfALedger(LifeOfALedger):
    """The same, longer and more often."""


TestManyLivesOfALedger = pytest.mark.slow(ManyLivesOfALedger.TestCase)
TestManyLivesOfALedger.settings = settings(max_examples=200, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow])
