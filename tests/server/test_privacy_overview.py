"""What receipts say about spending, composed for a person in several domains."""

from __future__ import annotations

import math

import pytest

from server.privacy_overview import overview
from server.schedule import solved
from shared.errors import UnreachableBudget
from shared.privacy.mechanism import Mechanism
from shared.wire import Receipt, canonical_json
from tests.server.tiny_clients import KEYS, small_config

DELTA = 1e-5


def receipt(domain: str, epsilon: float, *, kind: str = "poisson_gaussian") -> Receipt:
    """20 rounds of 10 steps at q = .05, sigma = 1: epsilon 4.766."""
    mechanism = Mechanism(kind=kind, sampling_rate=0.05, noise_multiplier=1.0, clip_norm=1.0, grid=0.0, dimension=10, steps=10)
    return Receipt.signed(
        KEYS[0],
        domain=domain,
        count_of_intents=20,
        head_hash="0" * 64,
        payload_sha256="0" * 64,
        mechanism=canonical_json(mechanism.to_record()),
        epsilon_spent=epsilon,
    )


def test_a_person_in_k_domains_is_covered_by_the_composition() -> None:
    spent = overview({domain: receipt(domain, 4.766) for domain in ("arts", "books", "cameras")}, DELTA)
    assert spent.for_k_domains == pytest.approx((4.77, 6.70, 8.29), abs=0.01)
    assert spent.at_least == (False, False, False)
    assert [domain.recomputed for domain in spent.domains] == pytest.approx([4.766] * 3, abs=0.01)


def test_where_a_receipt_shows_more_than_its_mechanism_explains_the_number_is_a_least_one() -> None:
    spent = overview({"arts": receipt("arts", 6.0), "books": receipt("books", 4.766), "cameras": receipt("cameras", 4.766)}, DELTA)
    assert spent.for_k_domains == pytest.approx((6.0, 6.0, 6.70), abs=0.01)  # books and cameras alone compose to 6.70
    assert spent.at_least == (True, True, True)


def test_where_a_receipt_shows_less_than_its_mechanism_would_cost_nothing_is_made_up() -> None:
    """An earlier run with far more noise counts as many rounds of the last one, and cost far less."""
    spent = overview({"arts": receipt("arts", 1.0), "books": receipt("books", 4.766)}, DELTA)
    assert spent.for_k_domains == pytest.approx((4.77, 4.77), abs=0.01)
    assert spent.at_least == (False, True)


def test_without_noise_epsilon_is_infinite_and_json_says_null() -> None:
    spent = overview({"arts": receipt("arts", math.inf, kind="none")}, DELTA)
    assert (spent.for_k_domains, spent.at_least) == ((math.inf,), (False,))
    assert spent.to_json()["for_k_domains"] == [None]


def test_noise_is_solved_once_for_the_whole_schedule_and_a_given_one_is_kept() -> None:
    config = small_config(privacy={"noise_multiplier": 0.0, "epsilon": 4.0})
    noise = solved(config).privacy.noise_multiplier
    assert 0.3 < noise < 3.0
    assert solved(solved(config)) == solved(config)
    without = small_config(privacy={"noise_multiplier": 0.0, "epsilon": math.inf})
    assert solved(without) == without


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(UnreachableBudget):
        solved(
            small_config(privacy={"noise_multiplier": 0.0, "epsilon": 1e-3, "sampling_rate": 1.0, "rounds": 1000, "steps_per_round": 100})
        )
