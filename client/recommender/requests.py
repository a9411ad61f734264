"""What is asked of the recommender, what it answers, and what it refuses to read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shared.errors import UsageError

MOST_CHARACTERS = 20_000
"""Characters of declared interests. A person types a few lines; whoever sends a megabyte made a mistake, and reading it takes seconds."""

POPULARITY, OWN, DECLARED = "popularity", "own history", "declared"
"""Where an answer comes from; the fourth is `passport_from` somebody."""


def passport_from(source: str) -> str:
    """The name of answers that rest on a passport.

    >>> passport_from("books")
    'passport from books'
    """
    return f"passport from {source}"


class UnknownUser(UsageError):
    """Nothing is known of a user: no history, no passport, nothing observed since, nothing declared."""


class UnknownItem(UsageError):
    """The catalogue lacks an item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One user's wish for a list.

    Args:
        user: the partner's own id; None for somebody without an account.
        k: items wanted, from 1 to the size of the catalogue. What is taken out may leave fewer.
        declared: interests in the person's own words, in any language that the text model reads; None where nobody declared any.
        interest: the same as a vector (d,) of the interest space.
        space_version: the interest space of ``interest``.
        blocked: items that this user is not to see.
        with_seen: offer what the user had before, too.
        diversity: 0 = by score alone, 1 = as different as can be (`client.recommender.reranking`).
        explain: reasons name prototypes and the user's own items.
        even_unknown: where nothing is known of the user, what is popular instead of an error.
    """

    user: str | None = None
    k: int = 20
    declared: str | None = None
    interest: np.ndarray | None = None
    space_version: str = ""
    blocked: tuple[str, ...] = ()
    with_seen: bool = False
    diversity: float = 0.0
    explain: bool = False
    even_unknown: bool = False

    @property
    def manner(self) -> tuple[int, float, bool, bool]:
        """Requests that are alike in this can be answered together."""
        return self.k, self.diversity, self.with_seen, self.explain


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """An item of an answer, its score before any re-ranking, and why it is there."""

    item: str
    score: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A list for one user.

    Attributes:
        user: as asked.
        items: best first.
        source: `POPULARITY`, `OWN`, `DECLARED`, or `passport_from` a partner.
        model_version: run, round and content of what recommended.
        uncertainty: 1 = nothing is known of this person's interests, towards 0 the more is.
    """

    user: str | None
    items: tuple[Recommendation, ...]
    source: str
    model_version: str
    uncertainty: float


def check_length(k: int, n_items: int) -> None:
    """Raises UsageError for lists that nobody can make."""
    if isinstance(k, bool) or not 1 <= k <= n_items:
        raise UsageError(f"lists of {k} items cannot be made from a catalogue of {n_items:,}", do=f"Choose k from 1 to {n_items:,}.")


def check_diversity(diversity: float) -> None:
    """Raises UsageError for a number outside 0 to 1."""
    if not (math.isfinite(diversity) and 0.0 <= diversity <= 1.0):
        raise UsageError("'diversity' is outside 0 to 1", do="0 is by score alone, 1 as different as can be.")


def check_declared(text: str, what: str = "the declared interests") -> str:
    """Declared interests as they are read.

    Raises:
        UsageError: they are empty, no text, or longer than `MOST_CHARACTERS`.
    """
    if not isinstance(text, str):
        raise UsageError(f"{what} are not text")
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"{what} have more than {MOST_CHARACTERS:,} characters", do="A few words or lines are enough.")
    if not text.strip():
        raise UsageError(f"{what} are empty", do="Leave them out, or say something.")
    return text


def check_interest(vector: np.ndarray, space_version: str, *, dimension: int, served: str) -> np.ndarray:
    """A declared vector (d,) as float32, of length 1 at most.

    Raises:
        UsageError: it belongs to another interest space, has another length, or holds a number that is not finite.
    """
    if space_version != served:
        raise UsageError(
            "the declared vector belongs to another interest space than the model that recommends", do="Make it anew in the space in use."
        )
    made = np.asarray(vector)
    if made.shape != (dimension,) or made.dtype.kind not in "fiu":
        raise UsageError(f"a declared vector has {dimension} numbers")
    if not np.isfinite(made).all():
        raise UsageError("a declared vector holds a number that is not finite")
    made = made.astype(np.float64)
    return (made / max(float(np.linalg.norm(made)), 1.0)).astype(np.float32)
