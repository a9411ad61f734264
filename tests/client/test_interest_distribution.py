"""Interest distributions: numbers that can be checked by hand, and what holds for whatever is observed in whatever order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.interest_distribution import FLOOR, InterestDistributions, nearest_items, prototype_names, read_against

PROTOTYPES = np.eye(3, dtype=np.float32)
FIRST = np.array([[0.8, 0.1, 0.1]])
LIKED, DISMISSED = np.array([1.0]), np.array([-1.0])

signs = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([-1.0, 1.0])), max_size=40)
readings = read_against(PROTOTYPES, np.random.default_rng(1).normal(size=(6, 3)))


def observed(events: list[tuple[int, float]], *, decay: float = 1.0) -> InterestDistributions:
    user = InterestDistributions.strangers(1, 3)
    for item, sign in events:
        user = user.after(readings[[item]], np.array([sign]), decay=decay)
    return user


def test_an_item_is_read_as_a_softmax_of_its_cosines_and_one_without_text_as_nothing() -> None:
    vectors = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    read = read_against(PROTOTYPES, vectors, sharpness=np.log(8))

    assert read.tolist() == [pytest.approx([0.8, 0.1, 0.1]), [0.0, 0.0, 0.0]]  # 8 : 1 : 1


def test_two_likes_are_counted_on_top_of_the_prior() -> None:
    user = InterestDistributions.strangers(1, 3, prior=np.array([1.0, 1.0, 1.0]))

    user = user.after(FIRST, LIKED).after(FIRST, LIKED)

    assert user.alpha.tolist() == [pytest.approx([2.6, 1.2, 1.2])]  # 1 + 2 x .8, 1 + 2 x .1
    assert user.mean.tolist() == [pytest.approx([0.52, 0.24, 0.24])]  # of 5
    assert user.uncertainty.tolist() == pytest.approx([3 / 5])
    assert user.alpha.sum() == pytest.approx(5.0)


def test_a_stranger_has_no_preference_no_place_and_full_uncertainty() -> None:
    stranger = InterestDistributions.strangers(2, 3)

    assert stranger.mean == pytest.approx(np.full((2, 3), 1 / 3))
    assert stranger.uncertainty.tolist() == [1.0, 1.0]
    assert stranger.entropy == pytest.approx([1.0, 1.0])
    assert not stranger.interests(PROTOTYPES).any()


def test_a_like_and_a_dismissal_of_the_same_item_cancel_but_we_know_more_than_before() -> None:
    user = InterestDistributions.strangers(1, 3).after(FIRST, LIKED).after(FIRST, DISMISSED)

    assert user.mean == pytest.approx(np.full((1, 3), 1 / 3))
    assert user.uncertainty.tolist() == pytest.approx([1 / 3])  # 1 of prior, 2 observed


def test_a_hundred_dismissals_leave_a_twentieth_of_the_prior_and_never_less() -> None:
    user = InterestDistributions.strangers(1, 3, prior=np.array([2.0, 2.0, 2.0]))
    for _ in range(100):
        user = user.after(FIRST, DISMISSED)

    assert FLOOR == 0.05
    assert user.alpha.tolist() == [pytest.approx([0.1, 0.1, 0.1])]
    assert (user.mean > 0).all()


def test_an_interest_vector_points_at_what_was_liked_and_away_from_what_was_dismissed() -> None:
    liked = InterestDistributions.strangers(1, 3).after(FIRST, LIKED).interests(PROTOTYPES)[0]
    dismissed = InterestDistributions.strangers(1, 3).after(FIRST, DISMISSED).interests(PROTOTYPES)[0]

    assert liked[0] > 0 > liked[1]
    assert dismissed[0] < 0 < dismissed[1]
    assert np.linalg.norm(liked) == pytest.approx(1.0)


def test_decay_halves_what_came_before_and_only_for_those_who_were_observed() -> None:
    both = InterestDistributions.strangers(2, 3, prior=np.ones(3)).after(np.repeat(FIRST, 2, axis=0), np.ones(2))

    after = both.after(np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), np.array([1.0, 0.0]), decay=0.5)

    assert after.alpha.tolist() == [pytest.approx([1.4, 2.05, 1.05]), pytest.approx([1.8, 1.1, 1.1])]
    assert after.uncertainty.tolist() == pytest.approx([3 / 4.5, 3 / 4])


def test_an_item_without_text_makes_nobody_surer() -> None:
    user = InterestDistributions.strangers(1, 3).after(np.zeros((1, 3)), LIKED)

    assert user.uncertainty.tolist() == [1.0]


def test_histories_in_a_batch_are_the_same_as_one_observation_after_the_other() -> None:
    items, mask = np.array([[0, 3, 2], [4, 1, 5]]), np.array([[True, True, True], [False, True, True]])

    batch = InterestDistributions.of_histories(items, mask, readings, decay=0.9)

    one = observed([(0, 1.0), (3, 1.0), (2, 1.0)], decay=0.9)
    other = observed([(1, 1.0), (5, 1.0)], decay=0.9)
    assert batch.alpha == pytest.approx(np.concatenate([one.alpha, other.alpha]))
    assert batch.uncertainty == pytest.approx(np.concatenate([one.uncertainty, other.uncertainty]))
    assert batch.select(np.array([1])).alpha == pytest.approx(other.alpha)


@given(signs, st.floats(0.1, 1.0))
def test_whatever_is_observed_it_stays_a_distribution(events: list[tuple[int, float]], decay: float) -> None:
    user = observed(events, decay=decay)

    assert (user.alpha > 0).all()
    assert user.mean.sum(axis=1) == pytest.approx([1.0])
    assert 0 < user.uncertainty[0] <= 1
    assert -1e-9 <= user.entropy[0] <= 1 + 1e-9
    assert np.isfinite(user.interests(PROTOTYPES)).all()


@given(signs, st.randoms(use_true_random=False))
def test_the_order_of_observations_does_not_matter(events: list[tuple[int, float]], random: object) -> None:
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert observed(shuffled).alpha == pytest.approx(observed(events).alpha)


@given(signs, st.integers(0, 5))
def test_one_more_like_never_lowers_and_one_more_dismissal_never_raises_the_interest_that_the_item_is_most_about(
    events: list[tuple[int, float]], item: int
) -> None:
    user, most = observed(events), int(np.argmax(readings[item]))

    assert user.after(readings[[item]], LIKED).alpha[0, most] >= user.alpha[0, most]
    assert user.after(readings[[item]], DISMISSED).alpha[0, most] <= user.alpha[0, most]
    for sign in (LIKED, DISMISSED):
        assert user.after(readings[[item]], sign).uncertainty[0] < user.uncertainty[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    user = InterestDistributions.strangers(1, 3)
    with pytest.raises(ValueError, match="finite"):
        user.after(FIRST, np.array([bad]))
    with pytest.raises(ValueError, match="finite"):
        user.after(np.array([[bad, 0.0, 0.0]]), LIKED)
    with pytest.raises(ValueError, match="finite"):
        read_against(PROTOTYPES, np.array([[bad, 0.0, 0.0]]))


@pytest.mark.parametrize("prior", [np.array([1.0, 0.0, 1.0]), np.array([1.0, -1.0, 1.0]), np.zeros(0), np.array([1.0, np.nan, 1.0])])
def test_a_prior_that_is_none_is_refused(prior: np.ndarray) -> None:
    with pytest.raises(ValueError, match="above 0"):
        InterestDistributions.strangers(1, 3, prior=prior)


def test_a_space_without_prototypes_can_be_read_by_nobody() -> None:
    with pytest.raises(ValueError, match="at least one"):
        read_against(np.zeros((0, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least one"):
        InterestDistributions.strangers(1, 0)


def test_the_nearest_items_come_nearest_first_equals_in_order_and_none_without_text() -> None:
    coordinates = np.array([[0.6, 0.8, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=np.float32)

    assert nearest_items(PROTOTYPES, coordinates, 3) == [(2, 4, 0), (3, 0, 2), (5, 0, 2)]
    assert nearest_items(PROTOTYPES, coordinates[:2], 3) == [(0,), (0,), (0,)]


def test_nearest_items_are_the_same_in_chunks_as_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    coordinates = generator.integers(-1, 2, size=(500, 3)).astype(np.float32)  # many equals
    whole = nearest_items(PROTOTYPES, coordinates, 7)

    monkeypatch.setattr("client.interest_distribution._ROWS_AT_A_TIME", 13)

    assert nearest_items(PROTOTYPES, coordinates, 7) == whole


def test_a_prototype_is_named_by_the_words_that_set_its_items_apart() -> None:
    items = [(0, 1), (2, 3)]
    texts = [["the red violin, strings", "Violin bow for the violin"], ["the volcano at night", "VOLCANO of the south"]]

    named = prototype_names(items, texts, words=2)

    # violin: 2 items of 2, log(1 + 2/2) each = 1.39; the: 2 of 4 items, 2 log(1 + 2/4) = .81; others log(1 + 2/1) = 1.10
    assert [one.words for one in named] == [("violin", "bow"), ("volcano", "night")]
    assert [one.items for one in named] == items
    assert str(named[0]) == "violin, bow"


def test_names_are_made_in_any_language_and_of_no_text_at_all() -> None:
    named = prototype_names([(0,), (1,), ()], [["Скрипка для детей"], ["小提琴 12345 of"], []])

    assert named[0].words == ("детей", "для", "скрипка")
    assert named[1].words == ("小提琴",)  # no number, no short word
    assert named[2].words == ()
