"""The serving head: popularity where the interest says nothing, the interest where it helps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from client.model import domain_head
from client.model.domain_head import ServingHead, fit, popularity_head
from client.model.head_likelihood import FittingData, Slope, Taken, counts_by_group, logarithms
from client.model.neighbours import Neighbours

ITEMS, D, USERS = 80, 8, 400


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices: more threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def coordinates() -> np.ndarray:
    points = np.random.default_rng(1).normal(size=(ITEMS, D))
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), dtype=np.float32)


def people(strength: float, users: int = USERS) -> FittingData:
    """Users who draw 3 items each from softmax(strength <z, x> + popularity)."""
    generator = np.random.default_rng(2)
    interests = generator.normal(size=(users, D)).astype(np.float32)
    scores = strength * interests @ coordinates().T + np.linspace(0.0, 2.0, ITEMS)
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    items = (
        np.concatenate([generator.choice(ITEMS, size=3, replace=False, p=row) for row in chances]) if users else np.zeros(0, dtype=np.int64)
    )
    counts = counts_by_group([items], ITEMS)
    return FittingData(interests=interests, offsets=np.arange(users + 1) * 3, items=items.astype(np.int32), counts=counts)


def fitted(data: FittingData, seed: int = 0) -> ServingHead:
    return fit(data, coordinates(), generator=np.random.default_rng(seed))


def test_where_the_interest_is_noise_the_gate_falls_to_zero_and_popularity_remains() -> None:
    data = people(strength=0.0)
    head = fitted(data)
    assert head.scale == 0.0
    scores = head.scores(data.interests[:1], coordinates())[0]
    assert np.corrcoef(scores, np.log1p(data.counts[0]))[0, 1] > 0.99


def test_where_the_interest_decides_the_gate_opens_fully() -> None:
    assert fitted(people(strength=3.0)).scale > 2.3  # a gate of 1/2 would leave half of the strength of the people themselves


def most_likely(data: FittingData, ridge: float | None = 100.0) -> ServingHead:
    everybody = np.arange(data.users)
    leaning = None if ridge is None else (ridge, 0.0)
    return domain_head._most_likely(data, torch.from_numpy(coordinates()), everybody, np.random.default_rng(0), leaning=leaning)


def test_likelihood_finds_how_strong_the_interest_is() -> None:
    assert 2.3 < most_likely(people(strength=3.0)).scale < 3.3  # three items without replacement say a little less than the truth


def test_an_interest_spoken_ten_times_lower_is_heard_ten_times_louder() -> None:
    """The problem is convex in what is fitted: how large interests are, and what all of them share, must not matter."""
    data = people(strength=3.0)
    shared = np.full(D, 0.7, dtype=np.float32)
    low = dataclasses.replace(data, interests=(0.1 * data.interests + shared).astype(np.float32))
    one, other = most_likely(data), most_likely(low)
    assert other.scale == pytest.approx(10 * one.scale, rel=0.05)
    before, after = (head.scores(of.interests, coordinates()) for head, of in ((one, data), (other, low)))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.999


def test_an_interest_that_points_away_is_not_turned_round() -> None:
    data = people(strength=3.0)
    away = dataclasses.replace(data, interests=-data.interests)
    assert most_likely(away).scale == pytest.approx(0.01)
    assert fitted(away).scale < 0.05


def test_a_smaller_ridge_lets_a_domain_lean_further_from_the_interests() -> None:
    data = people(strength=3.0)
    taste = dataclasses.replace(data, items=np.zeros_like(data.items), counts=np.full((1, ITEMS), 5000))
    near, far = (most_likely(taste, ridge=ridge) for ridge in (100.0, 5.0))
    leans = [float(head.scale * (taste.interests.mean(axis=0) + head.offset) @ coordinates()[0]) for head in (near, far)]
    assert 0 < leans[0] < leans[1]


def test_a_head_without_interest_is_the_popularity_it_was_given() -> None:
    head = most_likely(people(strength=0.0), ridge=None)
    assert head.scale == 0.0
    assert not head.offset.any()
    assert head.weights[0] > 0.0


def test_the_head_ranks_what_people_take_above_popularity() -> None:
    data = people(strength=3.0)
    head = fitted(data)
    first = data.items[data.offsets[:-1]]
    by_head = head.scores(data.interests, coordinates())
    better = (by_head > by_head[np.arange(USERS), first][:, None]).sum(axis=1)
    popular = data.counts[0]
    assert better.mean() < 0.7 * np.mean([(popular > popular[item]).sum() for item in first])


def test_each_users_own_items_are_taken_out_of_the_counts_that_predict_them() -> None:
    # item 0 was taken by this user alone, item 1 by this user and another, item 2 by the other
    counts = np.array([[1, 2, 1]])
    data = FittingData(interests=np.zeros((1, 2), np.float32), offsets=np.array([0, 2]), items=np.array([0, 1]), counts=counts)
    log_counts, without = logarithms(data)
    taken, scores = Taken.of(data, np.array([0]), log_counts, without), log_counts.clone()
    taken.count_without_themselves(scores, torch.ones(1))
    # log(0 + 1), log(1 + 1), and the item that is not the user's own stays at log(1 + 1)
    assert scores[0].tolist() == pytest.approx([0.0, np.log(2), np.log(2)])
    assert taken.shares.tolist() == [0.5, 0.5]  # a user weighs one, however many items


def some_who_take_twice_or_nothing() -> FittingData:
    """Two groups of counts; the first takes one item twice, the last takes nothing."""
    data = people(1.0, 300)
    items = np.concatenate([[7, 7, 9], data.items[3:]]).astype(np.int32)
    counts = counts_by_group([items, items[:450]], ITEMS)
    interests = np.concatenate([data.interests, np.ones((1, D), np.float32)])
    return FittingData(interests=interests, offsets=np.append(data.offsets, 900), items=items, counts=counts)


@pytest.mark.parametrize("ridge", [None, 3.0])
def test_the_slope_is_that_of_automatic_differentiation(ridge: float | None) -> None:
    data, points = some_who_take_twice_or_nothing(), torch.from_numpy(coordinates()).double()
    log_counts, without = logarithms(data)
    theta = np.array([0.7, 0.4, *([1.3, *np.linspace(-1.0, 1.0, D)] if ridge else [])])
    slope = Slope(data, points.float(), np.arange(data.users), data.interests, ridge)

    variables = torch.tensor(theta, requires_grad=True)
    scores = (variables[:2] @ log_counts.double()).repeat(data.users, 1)
    if ridge:
        scores = scores + (variables[2] * (torch.from_numpy(data.interests - data.interests.mean(axis=0))) + variables[3:]) @ points.T
    loss = (ridge or 0.0) * (variables[3:] ** 2).sum()
    for user in range(300):
        mine = data.items[data.offsets[user] : data.offsets[user + 1]].tolist()
        alone = scores[user] + sum(
            torch.eye(ITEMS)[item] * (variables[:2] @ (without - log_counts).double()[:, item]) for item in set(mine)
        )
        loss = loss - torch.log_softmax(alone, dim=0)[mine].mean()
    (loss / data.users).backward()

    value, gradient = slope(theta)
    assert value == pytest.approx(loss.item() / data.users, rel=1e-5)
    assert variables.grad is not None
    np.testing.assert_allclose(gradient, variables.grad.numpy(), rtol=1e-3, atol=1e-5)


def test_hits_are_those_of_a_ranking_in_which_own_items_count_without_their_owner() -> None:
    data = some_who_take_twice_or_nothing()
    heads = [popularity_head(data.counts, D), fitted(data), dataclasses.replace(fitted(data), scale=4.0)]
    asked = np.array([0, 1, 299, 300, 17])

    found = domain_head._hits(heads, data, coordinates(), asked)

    for at, head in enumerate(heads):
        scores = head.scores(data.interests, coordinates())
        for place, user in enumerate(asked):
            mine = data.items[data.offsets[user] : data.offsets[user + 1]]
            alone = scores[user].copy()
            alone[mine] += (head.weights @ (np.log(np.maximum(data.counts, 1)) - np.log(data.counts + 1)))[mine]
            best = alone[mine].max(initial=-np.inf)
            ahead = (alone > best + 1e-5).sum() + ((np.abs(alone - best) <= 1e-5).sum() - 1) / 2  # of equals half stand before it
            assert found[at, place] == pytest.approx(np.mean([len(mine) > 0 and ahead < cut for cut in domain_head.CUTS]), abs=1e-6)


def test_the_second_ridge_is_climbed_from_the_first_to_the_same_top() -> None:
    data = people(3.0)
    everybody, points = np.arange(data.users), torch.from_numpy(coordinates())
    far, near = (
        domain_head._most_likely(data, points, everybody, np.random.default_rng(0), leaning=(100.0, 0.0), near=begin)
        for begin in (None, domain_head._most_likely(data, points, everybody, np.random.default_rng(0), leaning=(5.0, 0.0)))
    )
    np.testing.assert_allclose(near.scale, far.scale, rtol=0.02)
    np.testing.assert_allclose(near.prior, far.prior, atol=0.05)


def test_a_fit_that_begins_at_another_fit_climbs_at_least_as_high() -> None:
    data, points = with_a_layer_that_forgot(800), torch.from_numpy(coordinates())
    assert data.passports is not None
    half, other = np.arange(400), np.arange(400, 800)
    elsewhere = domain_head._fits(data, points, other, np.random.default_rng(0), near=None)
    far, near = (domain_head._fits(data, points, half, np.random.default_rng(1), near=begin) for begin in (None, elsewhere))
    asked = domain_head._hits([*far, *near], data, coordinates(), half)
    before, after = asked[: len(far)].mean(axis=1), asked[len(far) :].mean(axis=1)
    np.testing.assert_allclose(after, before, atol=0.03)


def hits_of(gains: np.ndarray, seed: int, people: int = 1000) -> list[np.ndarray]:
    """Five parts of (candidates, people) hits: the first finds something for three in ten, the others for so many more."""
    generator = np.random.default_rng(seed)
    chances = 0.3 + np.concatenate([[0.0], gains])
    return [np.asarray(generator.random((len(chances), people // 5)) < chances[:, None], dtype=np.float32) for _ in range(5)]


def test_the_luckiest_of_many_is_not_trusted() -> None:
    """Measured on the people who chose it, the best of 28 settings that change nothing is mostly above it by a standard error."""
    settings = [hits_of(np.zeros(28), seed) for seed in range(60)]
    pooled = [np.concatenate(parts, axis=1) for parts in settings]
    gains = [one[1 + one[1:].mean(axis=1).argmax()] - one[0] for one in pooled]
    flattered = sum(gain.mean() > gain.std() / np.sqrt(len(gain)) for gain in gains)
    opened = sum(domain_head._trusted(parts) != 0 for parts in settings)
    assert flattered > 30
    assert opened <= 6


def test_few_parts_choose_in_more_groups_than_they_are() -> None:
    """Two halves that choose for each other would flatter less often, but lose a setting that one half cannot see."""
    halves = [
        [np.concatenate(one, axis=1) for one in (parts[:2], parts[2:])] for parts in (hits_of(np.array([0.05]), seed) for seed in range(40))
    ]
    assert sum(domain_head._trusted(parts) == 1 for parts in halves) > 20


def test_what_helps_is_trusted_and_the_best_of_it_is_taken() -> None:
    assert [domain_head._trusted(hits_of(np.array([0.02, 0.15, -0.1]), seed)) for seed in range(10)] == [2] * 10


def test_everybody_is_held_back_once_and_at_most_so_many_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[np.ndarray] = []
    fitted_on: list[np.ndarray] = []
    hits, fits = domain_head._hits, domain_head._fits

    def recorded_hits(heads: list[ServingHead], data: FittingData, points: np.ndarray, people: np.ndarray) -> np.ndarray:
        asked.append(people)
        return hits(heads, data, points, people)

    def recorded_fits(data: FittingData, items: torch.Tensor, people: np.ndarray, *rest: object, **more: object) -> list[ServingHead]:
        fitted_on.append(people)
        return fits(data, items, people, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(domain_head, "_hits", recorded_hits)
    monkeypatch.setattr(domain_head, "_fits", recorded_fits)
    fitted(people(3.0, 200))
    assert sorted(np.concatenate(asked).tolist()) == list(range(200))
    assert all(not set(one) & set(others) for one, others in zip(asked, fitted_on[:5], strict=True))
    assert fitted_on[5].tolist() == list(range(200))  # the head that is served knows everybody

    monkeypatch.setattr(domain_head, "_MOST_ASKED", 30)
    asked.clear()
    fitted(people(3.0, 200))
    assert [len(one) for one in asked] == [6] * 5


def test_as_few_parts_as_leave_enough_people_to_fit_by() -> None:
    assert [domain_head._number_of_parts(users) for users in (10, 1500, 1900, 2250, 3000, 1_000_000)] == [5, 5, 5, 3, 2, 2]


def test_counts_of_one_teach_the_head_nothing() -> None:
    """Everybody takes an item of their own; with their own counts left in, popularity would look perfect."""
    users = 60
    data = FittingData(
        interests=np.zeros((users, D), np.float32),
        offsets=np.arange(users + 1),
        items=np.arange(users, dtype=np.int32),
        counts=counts_by_group([np.arange(users)], ITEMS),
    )
    assert fitted(data).weights[0] < 0.5


@pytest.mark.parametrize("users", [0, 1, 9])
def test_too_few_people_leave_popularity_alone(users: int) -> None:
    data = people(3.0, users)
    head = fitted(data)
    assert head.scale == 0.0
    assert head.prior == pytest.approx(np.log1p(data.counts[0]))


def test_a_head_comes_back_from_its_arrays_unchanged() -> None:
    head = popularity_head(np.array([[1, 2, 3], [0, 1, 0]]), 4)
    again = ServingHead.from_arrays(head.to_arrays())
    assert again.prior.tolist() == head.prior.tolist()
    assert again.scale == head.scale


def test_users_without_items_do_no_harm() -> None:
    data = people(3.0, 30)
    offsets = np.concatenate([data.offsets, [data.offsets[-1]] * 5])
    interests = np.concatenate([data.interests, np.zeros((5, D), np.float32)])
    more = FittingData(interests=interests, offsets=offsets, items=data.items, counts=data.counts)
    assert np.isfinite(fitted(more).prior).all()


def test_parts_that_heads_share_give_each_head_its_scores() -> None:
    generator = np.random.default_rng(5)
    interests, passports = (generator.normal(size=(9, 4)).astype(np.float32) for _ in range(2))
    coordinates = generator.normal(size=(30, 4)).astype(np.float32)
    offset, counts = generator.normal(size=4).astype(np.float32), generator.normal(size=(2, 30)).astype(np.float32)
    beside = [
        Neighbours(landmarks=generator.normal(size=(3, 4)).astype(np.float32), factors=generator.normal(size=(3, 30)).astype(np.float32))
        for _ in range(2)
    ]
    plain = ServingHead(scale=0.0, offset=np.zeros(4, dtype=np.float32), weights=np.array([1.0, 0.0], dtype=np.float32), log_counts=counts)
    heads = [
        plain,
        dataclasses.replace(plain, scale=1.5, offset=offset),
        dataclasses.replace(plain, scale=0.5, offset=offset, loudness=30.0, neighbours=beside[0]),
        dataclasses.replace(plain, scale=0.5, offset=offset + 1, loudness=7.0, neighbours=beside[1]),
        dataclasses.replace(plain, scale=2.0, offset=offset, loudness=100.0, neighbours=beside[0]),
        dataclasses.replace(plain, scale=2.0, untrained=3.0, offset=offset + 2),
    ]

    parts = domain_head._Parts(interests, passports, coordinates)

    for head in [*heads, *heads]:
        np.testing.assert_allclose(parts.scores(head), head.scores(interests, coordinates, passports), rtol=1e-4, atol=1e-4)


def with_a_layer_that_forgot(users: int = 2500) -> FittingData:
    """What people take follows from the sum of two independent vectors: the layer kept one, the passport has both."""
    data, generator = people(0.0, users), np.random.default_rng(8)
    kept, forgotten = (generator.normal(size=(users, D)).astype(np.float32) for _ in range(2))
    scores = 2.0 * (kept + forgotten) @ coordinates().T
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    items = np.concatenate([generator.choice(ITEMS, size=3, replace=False, p=row) for row in chances]).astype(np.int32)
    passports = np.float32(0.1) * (kept + forgotten)  # quiet: what counts is the spread
    return dataclasses.replace(data, interests=10.0 * kept, items=items, counts=counts_by_group([items], ITEMS), passports=passports)


def first_ones(head: ServingHead, data: FittingData) -> float:
    """Share of people with one of their items among the first five."""
    best = np.argsort(-head.scores(data.interests, coordinates(), data.passports), axis=1)[:, :5]
    return float(np.mean([np.isin(best[user], data.items[3 * user : 3 * user + 3]).any() for user in range(data.users)]))


def test_what_the_layer_forgot_is_heard_from_the_passport_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_a_layer_that_forgot()
    monkeypatch.setattr("client.model.neighbours.LEAST", 10**9)  # neighbours read the passport too
    head = fitted(data)
    monkeypatch.setattr(domain_head, "LEANINGS", ((5.0, 0.0), (100.0, 0.0)))
    deaf = fitted(data)

    assert deaf.untrained == 0.0
    assert head.untrained > 0.0
    assert first_ones(head, data) > first_ones(deaf, data) + 0.05
    assert head.muted.untrained == head.untrained  # neighbours are muted, the passport is not


def test_a_passport_that_says_nothing_is_not_heard() -> None:
    data = people(3.0, 2500)
    noise = np.random.default_rng(9).normal(size=data.interests.shape).astype(np.float32)
    assert fitted(dataclasses.replace(data, passports=noise)).untrained == 0.0


def test_nothing_is_asked_twice_where_passports_were_not_transferred() -> None:
    data = people(3.0)
    assert domain_head.leanings(data) == domain_head.leanings(dataclasses.replace(data, passports=data.interests.copy()))
    assert len(domain_head.leanings(dataclasses.replace(data, passports=-data.interests))) > len(domain_head.leanings(data))


def test_queries_and_arrays_hold_the_passport_beside_the_interest() -> None:
    generator = np.random.default_rng(6)
    interests, passports = (generator.normal(size=(5, D)).astype(np.float32) for _ in range(2))
    head = dataclasses.replace(popularity_head(np.arange(ITEMS)[None], D), scale=1.5, untrained=0.7, offset=np.full(D, 0.1, np.float32))
    again = ServingHead.from_arrays(head.to_arrays())
    by_hand = (1.5 * (interests + 0.1) + 0.7 * passports) @ coordinates().T + np.log(np.arange(ITEMS) + 1)

    for one in (head, again):
        np.testing.assert_allclose(one.scores(interests, coordinates(), passports), by_hand, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(one.queries(interests, passports) @ one.item_vectors(coordinates()).T, by_hand, rtol=1e-4, atol=1e-4)
    older = {name: array for name, array in head.to_arrays().items() if name != "untrained"}
    assert ServingHead.from_arrays(older).untrained == 0.0
