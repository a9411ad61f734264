from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError, FederationError
from shared.interest_space import GRID, InterestSpace, Moments, centroids


def catalogue(n: int, size: int = 12, seed: int = 0, rank: int | None = None) -> np.ndarray:
    """Unit vectors around a mean, spread unevenly over ``rank`` directions."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(rank or size, size)) * 0.9 ** np.arange(rank or size)[:, None]
    rows = 1.0 + rng.normal(size=(n, rank or size)) @ mixing
    if rank is None:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def space_of(*catalogues: np.ndarray, dimension: int = 4) -> InterestSpace:
    return InterestSpace.from_moments([Moments.of(rows) for rows in catalogues], dimension)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_moments_of_domains_add_up_to_the_moments_of_their_pool(sizes, seed):
    rows = np.random.default_rng(seed).normal(size=(sum(sizes), 5)).astype(np.float32)
    parts = [Moments.of(part) for part in np.split(rows, np.cumsum(sizes)[:-1])]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    pooled = Moments.of(rows)
    assert total.count == pooled.count == sum(sizes)
    np.testing.assert_allclose(total.total, pooled.total, atol=1e-9)
    np.testing.assert_allclose(total.outer, pooled.outer, atol=1e-9)


def test_moments_have_the_same_size_whatever_the_catalogue():
    small, large = Moments.of(catalogue(10)), Moments.of(catalogue(1000))
    assert small.total.shape == large.total.shape == (12,)
    assert small.outer.shape == large.outer.shape == (12, 12)


def test_items_without_text_enter_no_moment():
    rows = catalogue(20)
    assert Moments.of(np.concatenate([rows, np.zeros((5, 12), dtype=np.float32)])).count == 20


@pytest.mark.parametrize(
    ("count", "total", "outer"),
    [
        (-1, np.zeros(2), np.zeros((2, 2))),
        (1, np.zeros(2), np.zeros((2, 3))),
        (1, np.zeros((2, 2)), np.zeros((2, 2))),
        (1, np.array([np.nan, 0.0]), np.zeros((2, 2))),
        (1, np.zeros(2), np.full((2, 2), np.inf)),
    ],
)
def test_moments_that_make_no_sense_are_refused(count, total, outer):
    with pytest.raises(ValueError, match="moments"):
        Moments(count, total, outer)


def test_moments_of_vectors_of_other_lengths_do_not_add_up():
    with pytest.raises(ValueError, match="different lengths"):
        Moments.of(catalogue(5, size=4)) + Moments.of(catalogue(5, size=6))


def test_domains_get_the_space_that_one_pooled_catalogue_would_give():
    first, second = catalogue(300, seed=1), catalogue(200, seed=2)
    assert space_of(first, second) == space_of(np.concatenate([first, second]))


def test_the_order_of_the_domains_changes_nothing():
    parts = [catalogue(n, seed=n) for n in (50, 60, 70)]
    assert space_of(*parts).version == space_of(*reversed(parts)).version


def test_the_space_whitens_and_is_orthonormal():
    rows = catalogue(500)
    space = space_of(rows)
    np.testing.assert_allclose(space.basis.T @ space.basis, np.eye(4), atol=1e-5)
    whitened = (rows - space.mean) @ space.basis / space.scale
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(4), atol=0.01)
    assert (np.diff(space.scale) <= 0).all()


def test_coordinates_follow_the_formula():
    rows = catalogue(30)
    space = space_of(rows)
    by_hand = ((rows - space.mean) @ space.basis) / space.scale
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    found = space.project(rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand, atol=1e-5)


def test_signs_and_bits_that_differ_between_machines_do_not_change_the_version():
    moments = Moments.of(catalogue(400))
    turned = np.random.default_rng(3).normal(size=12) * 1e-13  # what another linear algebra library might return
    near = Moments(moments.count, moments.total * (1 + 1e-14), moments.outer + np.outer(turned, turned))
    assert InterestSpace.from_moments([moments], 4).version == InterestSpace.from_moments([near], 4).version


def test_the_largest_entry_of_each_direction_is_positive():
    basis = space_of(catalogue(100)).basis
    assert (np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None, :], axis=0) > 0).all()


def test_an_item_without_text_and_an_item_at_the_mean_have_no_coordinate():
    space = space_of(catalogue(100))
    rows = np.stack([np.zeros(12, dtype=np.float32), space.mean, catalogue(1)[0]])
    found = space.project(rows)
    assert found[:2].tolist() == np.zeros((2, 4)).tolist()
    assert np.linalg.norm(found[2]) == pytest.approx(1.0, abs=1e-5)
    assert space.project(rows[:0]).shape == (0, 4)


def test_directions_beyond_the_rank_are_zero_and_do_not_blow_up():
    space = space_of(catalogue(50, rank=3), dimension=8)
    assert (space.basis[:, 3:] == 0).all()
    assert (space.scale[3:] == 1).all()
    stranger = catalogue(20, seed=5)  # a domain that sent no moments and has all directions
    found = space.project(stranger)
    assert np.isfinite(found).all()
    assert (found[:, 3:] == 0).all()


def test_a_nearly_empty_direction_is_not_amplified_without_bound():
    rows = np.random.default_rng(0).normal(size=(500, 4)) * np.array([1.0, 0.5, 1e-4, 1e-4])  # variances 1, .25, 1e-8, 1e-8
    scale = space_of(rows.astype(np.float32)).scale
    assert scale[2] == pytest.approx(scale[0] * 1e-2, rel=1e-3)  # sqrt(1e-4)


@pytest.mark.parametrize("n", [2, 10])
def test_a_domain_with_ten_items_has_a_space(n):
    rows = catalogue(n, size=32)
    space = space_of(rows, dimension=16)
    coordinates = space.project(rows)
    np.testing.assert_allclose(np.linalg.norm(coordinates, axis=1), 1.0, atol=1e-5)
    assert space.with_prototypes([centroids(coordinates, 16, 0)], 16, 0).prototypes.shape == (16, 16)


def test_items_that_are_all_alike_have_no_direction():
    rows = np.repeat(catalogue(1), 20, axis=0)
    assert (space_of(rows).project(rows) == 0).all()


@pytest.mark.parametrize("catalogues", [[], [np.zeros((0, 12), dtype=np.float32)], [catalogue(1)]])
def test_fewer_than_two_items_make_no_space(catalogues):
    with pytest.raises(FederationError, match="at least two items"):
        space_of(*catalogues)


@pytest.mark.parametrize("dimension", [0, 13])
def test_a_dimension_beyond_the_text_vector_is_refused(dimension):
    with pytest.raises(ConfigError, match=r"model\.dimension is outside 1 to 12"):
        space_of(catalogue(50), dimension=dimension)


def test_a_vector_that_is_not_finite_is_refused():
    rows = catalogue(5)
    rows[2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        space_of(catalogue(50)).project(rows)


@pytest.mark.parametrize("n", [0, 1, 3, 8, 9, 500])
def test_centroids_have_one_size_whatever_the_catalogue(n):
    found = centroids(catalogue(n), 8, seed=0)
    assert found.shape == (8, 12)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_few_items_are_repeated_in_turn():
    rows = np.array([[2.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    assert centroids(rows, 5, seed=0)[:, 0].tolist() == [1, 2, 1, 2, 1]


def test_centroids_depend_on_the_seed_and_not_on_the_order_or_on_repeats():
    rows = catalogue(200)
    again = np.concatenate([rows[::-1], rows[:50], np.zeros((3, 12), dtype=np.float32)])
    assert (centroids(rows, 8, seed=1) == centroids(again, 8, seed=1)).all()
    assert not (centroids(rows, 8, seed=1) == centroids(rows, 8, seed=2)).all()


def test_centroids_find_clusters_that_are_there():
    middles = np.eye(4, dtype=np.float32)
    rows = np.repeat(middles, 50, axis=0) + np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32) * 0.02
    found = centroids(rows, 4, seed=0)
    assert np.abs(found[found.argmax(axis=1).argsort()] - middles).max() < 0.02


def test_prototypes_are_unit_rows_and_do_not_depend_on_the_order_of_the_domains():
    first, second = catalogue(300, seed=1), catalogue(200, seed=2)
    space = space_of(first, second)
    own = [centroids(space.project(rows), 16, seed=0) for rows in (first, second)]
    made = space.with_prototypes(own, 16, seed=0)
    np.testing.assert_allclose(np.linalg.norm(made.prototypes, axis=1), 1.0, atol=1e-5)
    assert made == space.with_prototypes(own[::-1], 16, seed=0)
    assert made.version != space.version


def test_a_descriptor_is_the_head_of_the_mean_coordinate():
    space = space_of(catalogue(50))
    coordinates = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], dtype=np.float32)
    assert space.descriptor(coordinates, 2).tolist() == [0.5, 0.5]
    assert space.descriptor(coordinates[:0], 2).tolist() == [0.0, 0.0]
    with pytest.raises(ConfigError, match="descriptor_dimension"):
        space.descriptor(coordinates, 5)


def test_a_space_comes_back_from_its_arrays_with_its_version():
    space = space_of(catalogue(50)).with_prototypes([catalogue(9, size=4)], 6, seed=0)
    assert InterestSpace.from_arrays(space.to_arrays()) == space
    assert len(space.version) == 16


@pytest.mark.parametrize("name", ["mean", "basis", "scale", "prototypes"])
def test_each_array_is_part_of_the_version(name):
    arrays = space_of(catalogue(50)).with_prototypes([catalogue(9, size=4)], 6, seed=0).to_arrays()
    version = InterestSpace.from_arrays(arrays).version
    changed = arrays[name].copy()
    changed.flat[0] += GRID
    assert InterestSpace.from_arrays({**arrays, name: changed}).version != version


def test_arrays_that_are_no_space_are_refused():
    arrays = space_of(catalogue(50)).to_arrays()
    bad = [
        {k: v for k, v in arrays.items() if k != "scale"},
        {**arrays, "user-4711": arrays["mean"]},
        {**arrays, "mean": arrays["mean"].astype(np.float64)},
        {**arrays, "mean": arrays["mean"][:-1]},
        {**arrays, "scale": np.zeros(4, dtype=np.float32)},
        {**arrays, "basis": np.full_like(arrays["basis"], np.inf)},
        {**arrays, "prototypes": np.zeros((2, 3), dtype=np.float32)},
    ]
    for values in bad:
        with pytest.raises(ValueError, match="interest space"):
            InterestSpace.from_arrays(values)


def test_nobody_changes_a_space_in_place():
    space = space_of(catalogue(50))
    with pytest.raises(ValueError, match="read-only"):
        space.mean[0] = 1.0
