"""The public coordinates of private passports: out of one interest space and into the next."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.public_projection import PrivateTerms, Projection
from shared.errors import PassportError
from shared.interest_space import InterestSpace, Moments

D, WIDTH, K = 20, 8, 4


def space(seed: int = 0, width: int = WIDTH, size: int = D) -> InterestSpace:
    vectors = np.random.default_rng(seed).normal(size=(200, size)) * np.linspace(3.0, 1.0, size)
    return InterestSpace.from_moments([Moments.of(vectors.astype(np.float32))], width)


def turned(one: InterestSpace) -> InterestSpace:
    """Another space of the same directions: turned, with other scales."""
    turn, _ = np.linalg.qr(np.random.default_rng(9).normal(size=(WIDTH, WIDTH)))
    scale = np.linspace(1.0, 2.0, WIDTH, dtype=np.float32)
    return InterestSpace(mean=one.mean, basis=(one.basis @ turn).astype(np.float32), scale=scale, prototypes=one.prototypes)


NUMBERS = hnp.arrays(np.float32, (5, K), elements=st.floats(-4.0, 4.0, width=32))


@given(hnp.arrays(np.float32, (5, WIDTH), elements=st.floats(-4.0, 4.0, width=32)))
def test_in_its_own_space_it_is_the_first_coordinates_and_zeros(interests: np.ndarray) -> None:
    own = space()
    projection = Projection.of(own, K)
    assert np.array_equal(projection.read(interests, own), interests[:, :K].astype(np.float64))
    back = projection.expand(interests[:, :K], own)
    assert back.dtype == np.float32
    assert np.array_equal(back, np.concatenate([interests[:, :K], np.zeros((5, WIDTH - K), np.float32)], axis=1))


@given(NUMBERS)
def test_another_space_of_the_same_directions_gives_back_what_it_was_given(drawn: np.ndarray) -> None:
    own = space()
    projection, other = Projection.of(own, K), turned(own)
    np.testing.assert_allclose(projection.read(projection.expand(drawn, other), other), drawn, atol=1e-4)


def test_an_item_lies_in_the_same_direction_through_whichever_space_it_is_read() -> None:
    own = space()
    projection, other = Projection.of(own, K), turned(own)
    texts = np.random.default_rng(3).normal(size=(30, D)).astype(np.float32)
    read = [projection.read(each.project(texts), each) for each in (own, other)]
    cosines = [np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*read, strict=True)]
    assert min(cosines) > 0.999


def test_it_is_not_wider_than_the_space_nor_than_what_the_catalogues_know() -> None:
    assert Projection.of(space(width=3), 16).dimension == 3
    flat = np.zeros((50, D), dtype=np.float32)
    flat[:, :2] = np.random.default_rng(0).normal(size=(50, 2))  # two directions exist
    assert Projection.of(InterestSpace.from_moments([Moments.of(flat)], WIDTH), 16).dimension == 2


def test_bytes_and_back() -> None:
    projection = Projection.of(space(), K)
    data = projection.to_bytes()
    assert len(data) == 4 * (D + 1) * K
    again = Projection.from_bytes(data, space_version=projection.space_version, text_dimension=D, dimension=K)
    assert again.digest == projection.digest
    assert again.digest != Projection.of(space(1), K).digest
    assert PrivateTerms(epsilon=4.0, projection=again).digest != PrivateTerms(epsilon=8.0, projection=again).digest
    with pytest.raises(PassportError, match="cut short"):
        Projection.from_bytes(data[:-4], space_version="s", text_dimension=D, dimension=K)


@pytest.mark.parametrize("spoil", ["nan", "scale", "skew"])
def test_numbers_that_are_no_coordinates_are_refused(spoil: str) -> None:
    projection = Projection.of(space(), K)
    basis, scale = projection.basis.copy(), projection.scale.copy()
    if spoil == "nan":
        basis[0, 0] = np.nan
    elif spoil == "scale":
        scale[0] = 0.0
    else:
        basis[:, 0] = basis[:, 1]
    with pytest.raises(PassportError, match="no orthonormal columns"):
        Projection(space_version="s", basis=basis, scale=scale)


def test_another_language_model_is_refused() -> None:
    projection, other = Projection.of(space(), K), space(size=D + 4)
    assert not projection.fits(other)
    with pytest.raises(PassportError, match="another language model"):
        projection.expand(np.zeros((1, K)), other)
