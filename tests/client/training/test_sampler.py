"""The Poisson sampler: the law of one coin per user, at the cost of the batch."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from client.training import sampler as module
from client.training.sampler import PoissonSampler
from shared.privacy import conformance as checks


def test_each_subset_of_five_users_comes_as_often_as_five_coins_would_give_it() -> None:
    users, rate, draws, sampler = 5, 0.4, 4000, PoissonSampler()
    subsets = [frozenset(s) for size in range(users + 1) for s in itertools.combinations(range(users), size)]
    seen = dict.fromkeys(subsets, 0)
    for _ in range(draws):
        seen[frozenset(sampler.draw(users, rate).tolist())] += 1
    expected = [draws * rate ** len(s) * (1 - rate) ** (users - len(s)) for s in subsets]
    p = stats.chisquare(list(seen.values()), expected).pvalue
    print(f"32 subsets: p = {p:.3g}")
    assert p > checks.THRESHOLD


def test_a_subset_of_a_given_size_is_uniform() -> None:
    sampler, draws = PoissonSampler(), 4000
    seen = dict.fromkeys(map(frozenset, itertools.combinations(range(7), 3)), 0)
    for _ in range(draws):
        seen[frozenset(sampler._distinct(7, 3).tolist())] += 1
    assert stats.chisquare(list(seen.values())).pvalue > checks.THRESHOLD  # 35 subsets, each as likely


@pytest.mark.parametrize(("users", "rate"), [(1, 0.5), (50, 0.01), (300, 0.1), (300, 0.9), (10_000_000, 1e-6)])
def test_sizes_are_binomial(users: int, rate: float) -> None:
    sampler = PoissonSampler()
    sizes = [len(sampler.draw(users, rate)) for _ in range(2000)]
    law = stats.binom(users, rate)
    values = np.arange(int(law.ppf(1e-3)), int(law.ppf(1 - 1e-3)) + 1)
    edges = np.concatenate([[-0.5], values[:-1] + 0.5, [users + 0.5]]) if len(values) > 1 else np.array([-0.5, users + 0.5])
    expected = np.diff(law.cdf(edges)) * len(sizes)
    found = np.histogram(sizes, edges)[0]
    assert stats.chisquare(found, expected).pvalue > checks.THRESHOLD


@given(st.integers(1, 2000), st.floats(0.0, 1.0, exclude_min=True), st.integers())
def test_a_batch_holds_distinct_users_of_this_domain(users: int, rate: float, key: int) -> None:
    batch = PoissonSampler(key).draw(users, rate)
    assert len(np.unique(batch)) == len(batch) <= users
    assert len(batch) == 0 or (batch.min() >= 0 and batch.max() < users)


@given(st.floats(2**-54, 1 - 2**-53), st.integers(1, 10**7), st.floats(1e-6, 1 - 1e-6))
def test_the_size_is_the_inverse_of_the_binomial_law(u: float, users: int, rate: float) -> None:
    """The sampler stands on scipy's inverse: cdf(k - 1) < u <= cdf(k), up to rounding."""
    k = stats.binom.ppf(u, users, rate)
    assert stats.binom.cdf(k - 1, users, rate) <= u * (1 + 1e-9)
    assert stats.binom.cdf(k, users, rate) >= u * (1 - 1e-9)


def test_with_certainty_everybody_is_in_the_batch() -> None:
    assert PoissonSampler().draw(9, 1.0).tolist() == list(range(9))


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_not_even_the_rarest_random_bits_name_a_user_who_is_not_there(monkeypatch: pytest.MonkeyPatch, byte: bytes) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: byte * count)
    for users in (1, 7, 2**20, 2**20 + 1, 10_000_000):
        assert PoissonSampler()._distinct(users, 1)[0] in (0, users - 1)


def test_nobody_is_in_the_batch_of_an_empty_domain() -> None:
    assert PoissonSampler().draw(0, 0.5).tolist() == []


def test_equal_keys_give_equal_batches_and_no_key_gives_fresh_ones() -> None:
    first, second = (PoissonSampler("arts", 1).draw(10_000, 0.1).tolist() for _ in range(2))
    assert first == second
    assert PoissonSampler().draw(10_000, 0.1).tolist() != PoissonSampler().draw(10_000, 0.1).tolist()


def test_ten_million_users_cost_no_more_random_numbers_than_ten_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    real = module.system_uniform

    def counting(count: int) -> np.ndarray:
        drawn.append(count)
        return real(count)

    monkeypatch.setattr(module, "system_uniform", counting)
    for users in (10_000, 10_000_000):
        drawn.clear()
        batch = PoissonSampler().draw(users, 500 / users)
        assert sum(drawn) < 2 * len(batch) + 20
