"""Epsilon from the records alone. Check values at delta 1e-5: q .05, sigma 1."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import AuditError, LedgerBroken, LedgerError, MixedDeltas, UsageError
from shared.privacy.accountant import epsilon_at_order, epsilon_pld, epsilon_rdp, epsilon_replace_one, renyi_divergence
from shared.privacy.audit_words import recomputation_document, recomputation_words
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism
from shared.privacy.recompute import MOST_LEDGERS, Recomputation, recompute
from tests.shared.privacy.bookshop import KEYS, bytes_of
from tests.shared.privacy.tampering import rewrite

Make = Callable[..., Any]
DELTA = 1e-5
COARSE = 1e-3


def steps(n: int, *, q: float = 0.05, sigma: float = 1.0, kind: str = "poisson_gaussian") -> Mechanism:
    return Mechanism(kind=kind, sampling_rate=q, noise_multiplier=sigma, clip_norm=0.5, grid=2.0**-21, dimension=1000, steps=n)


def spend(ledger: Ledger, one: Mechanism, *, rounds: int = 1, run_id: str = "autumn") -> None:
    """A whole run, every round of it answered."""
    what: dict[str, Any] = {"run_id": run_id, "mechanism": one, "config_hash": "c" * 64}
    ledger.admit(rounds=rounds, reserve=0, **what)
    for number in range(1, rounds + 1):
        attempt = ledger.intent(round=number, bundle_digest="b" * 64, code_version="0.1.0", **what)
        ledger.commit(run_id=run_id, round=number, attempt=attempt, payload_sha256="d" * 64)


@pytest.fixture
def domain(tmp_path: Path) -> Make:
    """A ledger of a domain that spent these mechanisms, each in a run of its own."""

    def make(name: str, *spent: Mechanism, delta: float = DELTA, **more: Any) -> Path:
        path = tmp_path / f"{name}.sqlite"
        terms = {"signer": KEYS, "domain": name, "ceiling_epsilon": 60.0, "delta": delta, "set_by": "the owner", **more}
        with Ledger.restart(path, **terms) if "booked_epsilon" in more else Ledger.create(path, **terms) as ledger:
            for number, one in enumerate(spent):
                spend(ledger, one, run_id=f"run-{number}")
        return path

    return make


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of 1e-3, ten times as fast: still an upper bound, and the same to three digits."""
    monkeypatch.setattr("shared.privacy.recompute.REPORT_INTERVAL", COARSE)


def quick(*paths: Path, **more: Any) -> Recomputation:
    """Without PRV, for which the second PLD stands in."""
    return recompute(paths, **{"time_limit_s": 0.0, **more})


@pytest.mark.parametrize(("n", "expected"), [(200, 4.766), (1000, 10.987)])
def test_the_known_values(domain: Make, n: int, expected: float) -> None:
    found = quick(domain("books", steps(n)), copies=1)
    (one,) = found.ledgers
    assert one.epsilons.pld == pytest.approx(expected, abs=1e-3)
    assert one.claim == one.epsilons.pld
    # PRV, a hundredth above, where an earlier test has asked it; else the second PLD
    assert (one.epsilons.second or one.epsilons.prv) == pytest.approx(expected, abs=0.012)
    assert (one.decided_by, one.steps, one.groups) == ("pld", n, ((0.05, 1.0, n),))
    assert found.agree, found.why


def test_a_person_in_k_domains_like_this_one(domain: Make) -> None:
    found = quick(domain("books", steps(200)))
    assert found.hypothetical
    rows = {row.k: row.epsilon for row in found.persons}
    assert [rows[k] for k in (1, 2, 3, 5)] == pytest.approx([4.77, 6.70, 8.29, 10.99], abs=5e-3)


def test_a_person_in_k_of_these_domains_is_the_composition_of_their_lists(domain: Make) -> None:
    names = ("books", "films", "games", "music", "plays")
    found = quick(*(domain(name, steps(200)) for name in names))
    assert not found.hypothetical
    rows = {row.k: row.epsilon for row in found.persons}
    assert [rows[k] for k in (1, 2, 3, 5)] == pytest.approx([4.77, 6.70, 8.29, 10.99], abs=5e-3)
    assert found.persons[-1].domains == names


def test_a_changed_record_instead_of_a_missing_one(domain: Make) -> None:
    found = quick(domain("books", steps(200)))
    assert found.replace_one == {"books": pytest.approx(7.107, abs=1e-3)}


def test_prv_is_asked_where_there_is_time(domain: Make) -> None:
    (one,) = recompute([domain("books", steps(100))], copies=1, time_limit_s=120).ledgers
    assert one.epsilons.prv is not None
    assert one.epsilons.second is None
    assert one.epsilons.agree


SPENT = {"books": steps(120), "films": steps(200, sigma=1.4), "games": steps(60, q=0.1, sigma=1.2), "music": steps(300, q=0.02, sigma=0.8)}


@pytest.mark.usefixtures("coarse")
def test_the_row_of_each_size_is_the_worst_set(domain: Make) -> None:
    found = quick(*(domain(name, one) for name, one in SPENT.items()))
    for row in found.persons:
        costs = {
            chosen: epsilon_pld([SPENT[name] for name in chosen], DELTA, interval=COARSE) for chosen in itertools.combinations(SPENT, row.k)
        }
        assert row.epsilon == pytest.approx(max(costs.values()), abs=1e-6)
        assert costs[row.domains] == max(costs.values())
    costs_of_more = [row.epsilon for row in found.persons]
    assert costs_of_more == sorted(costs_of_more)


# --- where parameters were chosen after earlier outputs ----------------------------------------------------------------------------------
@pytest.mark.usefixtures("coarse")
def test_the_ceiling_is_the_claim_where_the_filter_decides(domain: Make) -> None:
    """Its theorem vouches for the bound fixed in advance; what is spent so far is information."""
    found = quick(domain("books", steps(100), steps(50, sigma=2.0)))
    (one,) = found.ledgers
    assert one.decided_by == "rdp-filter"
    assert one.filter_order is not None
    assert one.spent == one.filter_epsilon == epsilon_at_order([steps(100), steps(50, sigma=2.0)], DELTA, one.filter_order)
    assert one.claim == one.ceiling_epsilon == 60.0 > one.spent > one.epsilons.pld
    assert found.persons[0].epsilon == one.claim
    assert found.persons[0].pld == one.epsilons.pld
    assert (found.replace_one["books"], one.replace_one_disputed, found.agree) == (None, False, True)
    assert "filter" in one.replace_one_why
    said = recomputation_document(found)["ledgers"][0]
    assert (said["epsilon"], said["epsilon_is"], said["epsilon_spent"], said["replace_one"]) == (60.0, "ceiling", one.spent, None)
    assert said["replace_one_why"] == one.replace_one_why
    words = recomputation_words(found)
    assert "epsilon 60.0000 at delta 1e-05, its ceiling" in words
    assert f"spent so far {one.spent:.4f}" in words
    assert f"REPLACE_ONE       no number ({one.replace_one_why})" in words


@pytest.mark.usefixtures("coarse")
def test_one_schedule_claims_what_it_spent(domain: Make) -> None:
    found = quick(domain("books", steps(100)), copies=1)
    said = recomputation_document(found)["ledgers"][0]
    assert said["epsilon"] == said["epsilon_spent"] == found.ledgers[0].epsilons.pld
    assert (said["epsilon_is"], said["replace_one_why"]) == ("spent", "")


@pytest.mark.usefixtures("coarse")
def test_filters_of_several_domains_are_composed_at_the_lowest_order(domain: Make) -> None:
    paths = [
        domain("books", steps(100), steps(50)),
        domain("films", steps(20, sigma=3.0), steps(20, sigma=3.0), ceiling_epsilon=2.0),
        domain("games", steps(80)),
    ]
    found = quick(*paths)
    books, films, _ = found.ledgers
    assert books.filter_order is not None
    assert films.filter_order is not None
    low = min(books.filter_order, films.filter_order)
    assert books.filter_order != films.filter_order
    everything = [steps(150), steps(40, sigma=3.0), steps(80)]
    # each filter may let pass all that its ceiling permits, at its own order, where that is at least what it is at the lowest
    assert epsilon_at_order(everything, DELTA, low) < max(one.claim for one in found.ledgers) <= found.persons[2].epsilon
    permitted = [one.claim - conversion(one.filter_order) for one in (books, films)]
    total = sum(permitted) + renyi_divergence([steps(80)], low)
    assert found.persons[2].epsilon == pytest.approx(total + conversion(low))
    assert found.persons[2].epsilon < sum(one.claim for one in found.ledgers)
    assert found.persons[2].epsilon > found.persons[2].pld


def conversion(order: float) -> float:
    """What turning a Renyi divergence at an order into epsilon adds (Canonne, Kamath and Steinke 2020, proposition 12)."""
    return math.log1p(-1 / order) - math.log(DELTA * order) / (order - 1)


def test_many_faint_steps_are_priced_on_a_grid_that_sees_them(domain: Make) -> None:
    """On the usual grid half a million roundings add twice what the steps cost, and PLD lies above RDP."""
    faint = steps(500_000, q=1e-4, sigma=5.0)
    assert epsilon_pld([faint], DELTA, interval=1e-4) > 1.5 * epsilon_rdp([faint], DELTA)
    found = quick(domain("books", faint), copies=2)
    (one,) = found.ledgers
    assert found.agree, found.why
    assert one.epsilons.interval == 1e-5
    assert found.persons[0].epsilon == one.claim == one.epsilons.pld == epsilon_pld([faint], DELTA, interval=1e-5)
    assert one.claim < one.epsilons.rdp
    assert found.persons[1].agree
    assert one.claim < found.replace_one["books"] < 2.5 * one.claim


# --- booked, not private, broken ---------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("coarse")
def test_what_is_booked_is_added_with_its_delta(domain: Make) -> None:
    booked = {"booked_epsilon": 3.0, "booked_delta": 1e-6, "last_receipt": None}
    found = quick(domain("books", steps(100), **booked), domain("films", steps(100)))
    books, films = found.ledgers
    assert books.claim == pytest.approx(films.claim + 3.0)
    assert books.claimed_delta == pytest.approx(1.1e-5)
    assert (found.replace_one["books"], books.replace_one_disputed, found.agree) == (None, False, True)  # (3, 1e-6) bounds it by no sum
    assert "lost ledger" in books.replace_one_why
    assert found.replace_one["films"] == pytest.approx(epsilon_replace_one([steps(100)], DELTA, interval=COARSE))
    one, two = found.persons
    assert (one.domains, one.delta) == (("books",), pytest.approx(1.1e-5))
    assert two.epsilon == pytest.approx(3.0 + epsilon_pld([steps(200)], DELTA, interval=COARSE))
    assert two.delta == pytest.approx(1.1e-5)


@pytest.mark.usefixtures("coarse")
def test_no_number_for_a_ledger_that_protects_nobody(domain: Make) -> None:
    nothing = Mechanism(kind="none", sampling_rate=0.0, noise_multiplier=0.0, clip_norm=0.0, grid=0.0, dimension=1, steps=1)
    found = quick(domain("books", nothing, private=False), domain("films", steps(100)))
    assert not found.agree
    assert "NOT PRIVATE" in found.why
    books, films = found.ledgers
    assert books.claim is None
    assert films.claim is not None
    assert found.replace_one["books"] is None
    assert all(row.epsilon is None for row in found.persons)  # the worst of each size holds it


@pytest.mark.usefixtures("coarse")
def test_no_number_for_one_that_says_not_private_whatever_its_noise(domain: Make) -> None:
    found = quick(domain("books", steps(100), private=False))
    assert found.ledgers[0].claim is None
    assert found.persons[0].epsilon is None


@pytest.mark.usefixtures("coarse")
def test_an_untouched_ledger_costs_nothing(domain: Make) -> None:
    found = quick(domain("books"))
    assert found.ledgers[0].claim == 0.0
    assert [row.epsilon for row in found.persons] == [0.0] * 5
    assert found.agree


@pytest.mark.usefixtures("coarse")
def test_no_number_where_no_second_accountant_answers(domain: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.privacy.second_pld.MOST_CELLS", 100)
    found = quick(domain("books", steps(77)))
    assert not found.agree
    assert found.ledgers[0].claim is None
    assert found.ledgers[0].epsilons.pld > 0  # what it said is there, as what it is
    assert all(row.epsilon is None for row in found.persons)
    assert found.replace_one == {"books": None}


@pytest.mark.usefixtures("coarse")
def test_a_ledger_that_does_not_hold_is_refused(domain: Make) -> None:
    path = domain("books", steps(100))
    rewrite(path, from_seq=3, edit={3: {"round": 2}}, signer=KEYS)
    with pytest.raises(LedgerBroken):
        quick(path)


@pytest.mark.usefixtures("coarse")
def test_different_deltas_cannot_be_added_up(domain: Make) -> None:
    with pytest.raises(MixedDeltas, match="films") as caught:
        quick(domain("books", steps(10)), domain("films", steps(10), delta=1e-6))
    assert caught.value.exit_code == 26


@pytest.mark.usefixtures("coarse")
def test_a_ledger_counts_once(domain: Make) -> None:
    path = domain("books", steps(10))
    with pytest.raises(AuditError, match="books"):
        quick(path, path)


@pytest.mark.usefixtures("coarse")
def test_nothing_and_too_much_are_refused(domain: Make, tmp_path: Path) -> None:
    path = domain("books", steps(10))
    for paths in ((), (path,) * (MOST_LEDGERS + 1)):
        with pytest.raises(UsageError):
            quick(*paths)
    with pytest.raises(UsageError):
        quick(path, copies=0)
    with pytest.raises(LedgerError):
        quick(tmp_path / "nothing")


@pytest.mark.usefixtures("coarse")
def test_the_ledgers_stay_as_they_are(domain: Make, tmp_path: Path) -> None:
    path = domain("books", steps(10))
    before = bytes_of(tmp_path)
    quick(path)
    assert bytes_of(tmp_path) == before


@pytest.mark.journey
@pytest.mark.usefixtures("coarse")
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0.9, 4.0)), min_size=2, max_size=3))
def test_worst_sets_of_any_domains_are_found(tmp_path_factory: pytest.TempPathFactory, spent: list[tuple[int, float]]) -> None:
    folder = tmp_path_factory.mktemp("any")
    paths = []
    for at, (n, sigma) in enumerate(spent):
        path = folder / f"{at}.sqlite"
        terms = {"ceiling_epsilon": 400.0, "delta": DELTA, "set_by": "the owner"}
        with Ledger.create(path, signer=KEYS, domain=f"d{at}", **terms) as ledger:
            spend(ledger, steps(n, sigma=sigma))
        paths.append(path)
    for row in quick(*paths).persons:
        costs = [
            epsilon_pld([steps(n, sigma=sigma) for n, sigma in chosen], DELTA, interval=COARSE)
            for chosen in itertools.combinations(spent, row.k)
        ]
        assert row.pld == pytest.approx(max(costs), abs=1e-6)
        assert row.epsilon is None or math.isclose(row.epsilon, max(costs), abs_tol=1e-6)
