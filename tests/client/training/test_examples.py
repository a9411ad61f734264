"""Examples: one user, one example, drawn from that user's own data."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from client.model.objective import Batch
from client.training.examples import Examples, Passports, own_draws
from shared.config import TrainingConfig
from shared.privacy import conformance as checks
from tests.client.training.tiny_partner import histories_of, people

ITEMS = 50
LISTS = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=20, unique=True), max_size=8)
CONFIGS = st.builds(
    TrainingConfig,
    target_items=st.integers(1, 9),
    max_history_items=st.integers(1, 12),
    max_items_per_user=st.integers(2, 15),
    catalogue_negatives=st.integers(1, 80),
    own_as_passport=st.booleans(),
)


def identity_examples(lists: list[list[int]], config: TrainingConfig, seed: int = 0, passports: Passports | None = None) -> Examples:
    """Item i has the i-th unit vector as coordinate, so that a batch can be read back."""
    return Examples(
        histories=histories_of([np.array(items, dtype=np.int64) for items in lists]),
        coordinates=np.eye(ITEMS, dtype=np.float32),
        passports=passports or Passports.none(len(lists), ITEMS),
        descriptor=np.zeros(4, dtype=np.float32),
        config=config,
        generator=np.random.default_rng(seed),
    )


def items_of(rows: np.ndarray, mask: np.ndarray) -> list[int]:
    return [int(row.argmax()) for row, there in zip(rows, mask, strict=True) if there]


def read(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """(history, targets) of each user."""
    both = ((batch.history, batch.history_mask), (batch.targets, batch.target_mask))
    (history, there), (targets, wanted) = ((rows.numpy(), mask.numpy()) for rows, mask in both)
    return [(items_of(h, t), items_of(x, w)) for h, t, x, w in zip(history, there, targets, wanted, strict=True)]


@settings(max_examples=150)
@given(LISTS, CONFIGS, st.integers(0, 5))
def test_targets_and_history_divide_a_users_own_items(lists: list[list[int]], config: TrainingConfig, seed: int) -> None:
    batch = identity_examples(lists, config, seed)(np.arange(len(lists)))
    for items, (history, targets) in zip(lists, read(batch), strict=True):
        kept = items[-config.max_items_per_user :]
        assert set(history) | set(targets) <= set(kept)
        assert not set(history) & set(targets)
        assert len(targets) == len(set(targets)) == min(config.target_items, (len(kept) + 1) // 2)  # at most half, rounded up
        assert len(history) <= config.max_history_items
        assert history == [item for item in kept if item in history]  # in the order of time, the latest last
        if not targets:
            continue
        first = min(kept.index(item) for item in targets)
        earlier = kept[:first]
        expected = earlier or [item for item in kept if item not in targets]  # strictly before the first target where time allows
        assert history == expected[-config.max_history_items :]


@settings(max_examples=60)
@given(LISTS, CONFIGS)
def test_masks_are_zero_or_one_and_every_mask_fits_its_tensor(lists: list[list[int]], config: TrainingConfig) -> None:
    batch = identity_examples(lists, config)(np.arange(len(lists)))
    masks = ((batch.history, batch.history_mask), (batch.targets, batch.target_mask), (batch.passports, batch.passport_mask))
    for rows, mask in masks:
        assert rows.shape[:2] == mask.shape
        assert rows.shape[0] == batch.users == len(lists)
        assert set(np.unique(mask.numpy())) <= {0.0, 1.0}
        assert rows.shape[1] >= 1
    assert batch.history_mask.shape[1] == 1 or batch.history_mask[:, 0].any()  # no longer than the longest history


@settings(max_examples=60)
@given(LISTS.filter(bool), CONFIGS, st.integers(0, 5), st.data())
def test_a_users_example_is_the_same_whoever_else_is_in_the_batch(
    lists: list[list[int]], config: TrainingConfig, seed: int, data: st.DataObject
) -> None:
    others = data.draw(st.permutations(range(len(lists))))
    user = others[0]
    alone = read(identity_examples(lists, config, seed)(np.array([user])))[0]
    together = read(identity_examples(lists, config, seed)(np.array(others)))[0]
    without = [items for place, items in enumerate(lists) if place == user]
    moved = read(identity_examples(without, config, seed)(np.array([0])))[0]  # the neighbours left, so the position is another
    assert alone == together == moved


@given(LISTS, CONFIGS)
def test_negatives_come_from_the_public_catalogue_whoever_is_in_the_batch(lists: list[list[int]], config: TrainingConfig) -> None:
    batch, empty = (identity_examples(lists, config)(np.arange(users)) for users in (len(lists), 0))
    assert np.array_equal(batch.negatives, empty.negatives)
    drawn = batch.negatives.numpy().argmax(axis=1)
    assert len(np.unique(drawn)) == len(drawn) == min(config.catalogue_negatives, ITEMS)
    assert batch.negative_weight == ITEMS / len(drawn)
    for (_, targets), hits in zip(read(batch), batch.hits.numpy(), strict=True):
        assert [int(h) for h in hits[: len(targets)]] == [int(t in drawn) for t in targets]


def test_a_batch_of_nobody_has_the_shapes_of_a_batch() -> None:
    batch = identity_examples([[1, 2], [3]], TrainingConfig())(np.zeros(0, dtype=np.int64))
    assert (batch.users, batch.history.shape[2], batch.targets.shape[2], batch.passports.shape) == (0, ITEMS, ITEMS, (0, 1, ITEMS))


def test_a_domain_of_users_without_items_makes_examples_without_targets() -> None:
    batch = identity_examples([[], []], TrainingConfig())(np.arange(2))
    assert read(batch) == [([], []), ([], [])]


def test_passports_go_to_the_user_who_brought_them() -> None:
    vectors = np.arange(3 * ITEMS, dtype=np.float32).reshape(3, ITEMS)
    rows = np.array([[0, -1], [-1, -1], [2, 1]], dtype=np.int32)
    batch = identity_examples([[1], [2], [3]], TrainingConfig(), passports=Passports(vectors=vectors, rows=rows))(np.array([2, 1, 0]))
    assert batch.passport_mask.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert batch.passports[0].tolist() == vectors[[2, 1]].tolist()
    assert not batch.passports[1].any()
    assert not batch.passports[2, 1].any()


def test_every_item_of_a_user_is_a_target_as_often_as_any_other() -> None:
    examples = identity_examples([list(range(10))], TrainingConfig(target_items=3))
    counts = np.zeros(10)
    steps = 1500
    for _ in range(steps):
        counts[read(examples(np.array([0])))[0][1]] += 1
    assert counts.sum() == 3 * steps
    # drawing 3 of 10 without replacement: variance n q (1 - q), correlated by -1/9, so the sum of squares has 9 degrees of freedom
    statistic = float(((counts - 0.3 * steps) ** 2).sum() / (0.3 * 0.7 * steps) * 0.9)
    assert stats.chi2.sf(statistic, 9) > checks.THRESHOLD


def test_own_draws_look_uniform_and_differ_between_users_and_steps() -> None:
    items = np.random.default_rng(0).integers(0, 300, size=(4000, 6))
    present = np.ones_like(items, dtype=bool)
    first, second = (own_draws(items, present, np.uint64(step)) for step in (0, 1))
    for draws in (first, second):
        assert stats.kstest(draws.ravel(), "uniform").pvalue > checks.THRESHOLD
    assert checks.noise_correlation([first.ravel(), second.ravel()]) > checks.THRESHOLD
    assert checks.noise_correlation(list(first.T)) > checks.THRESHOLD
    assert stats.pearsonr(first[:-1].ravel(), first[1:].ravel()).pvalue > checks.THRESHOLD


def test_own_draws_do_not_change_with_the_width_of_the_batch() -> None:
    narrow = own_draws(np.array([[3, 4]]), np.ones((1, 2), dtype=bool), np.uint64(9))
    wide = own_draws(np.array([[0, 0, 3, 4]]), np.array([[False, False, True, True]]), np.uint64(9))
    assert wide[0, 2:].tolist() == narrow[0].tolist()


def test_one_user_more_leaves_all_other_examples_as_they_are() -> None:
    crowd = people(30)
    everybody = identity_like(crowd.items)
    others = identity_like(crowd.without(11).items)
    with_user, without = (read(examples(np.arange(n))) for examples, n in ((everybody, 30), (others, 29)))
    assert with_user[:11] + with_user[12:] == without


def identity_like(lists: list[np.ndarray]) -> Examples:
    return identity_examples([np.unique(items % ITEMS).tolist() for items in lists], dataclasses.replace(TrainingConfig(), target_items=4))


@settings(max_examples=60)
@given(LISTS, CONFIGS, st.integers(0, 5), st.data())
def test_who_brought_nothing_trains_the_transfer_with_a_passport_of_the_own_history_and_nobody_else_is_touched(
    lists: list[list[int]], config: TrainingConfig, seed: int, data: st.DataObject
) -> None:
    brought = np.array([data.draw(st.booleans()) for _ in lists], dtype=bool)
    rows = np.full((len(lists), 2), -1, dtype=np.int32)
    rows[brought, 1] = np.arange(brought.sum())
    passports = Passports(vectors=np.full((int(brought.sum()), ITEMS), 7.0, dtype=np.float32), rows=rows)
    everybody = np.arange(len(lists))
    plain = identity_examples(lists, dataclasses.replace(config, own_as_passport=False), seed, passports)(everybody)
    batch = identity_examples(lists, dataclasses.replace(config, own_as_passport=True), seed, passports)(everybody)

    for at, (history, _) in enumerate(read(batch)):
        if brought[at] or not history:
            assert batch.passports[at].equal(plain.passports[at])
            assert batch.passport_mask[at].equal(plain.passport_mask[at])
            continue
        assert batch.passport_mask[at].tolist() == [1.0, 0.0]
        made = batch.passports[at, 0].numpy()
        weights = config.history_decay ** np.arange(len(history) - 1, -1, -1)
        assert set(np.flatnonzero(made)) == set(history)  # and none of the targets
        np.testing.assert_allclose(made[history], weights / weights.sum(), rtol=1e-5, atol=1e-6)
    for name in ("history", "history_mask", "targets", "target_mask", "negatives", "hits"):
        assert getattr(batch, name).equal(getattr(plain, name))
