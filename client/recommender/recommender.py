"""The recommender of one domain: lists for users, items like an item, and why.

It answers from what was delivered, the partner's prepared data, passports, and what was observed since: a new observation changes the next
answer. Any number of threads may ask at once. The same question of the same state has the same answer, whoever else is asked about with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from shared.errors import UsageError
from shared.interest_space import InterestSpace

from ..data.pseudonyms import PseudonymTable, pseudonym
from ..live_profiles import LiveProfiles
from ..model.onnx_text_encoder import make_text_encoder
from ..model.text_encoder import TextEncoder
from ..settings import ClientSettings
from ..top_k import Excluded
from .batches import Progress, Wanted, frames, refuse_strangers
from .delivered import Delivered, stamp
from .explanation import Explanation
from .filters import Filters, read_filters
from .opened import Opened
from .people import People, nobody
from .ragged import Ragged
from .requests import Answer, Recommendation, Request, UnknownItem, UnknownUser, check_declared, check_diversity, check_length
from .scoring import PLAIN

__all__ = ["Answer", "Recommendation", "Recommender", "Request", "Similar", "UnknownItem", "UnknownUser"]

PASSPORTS_FOR_S = 60.0
"""Passports are read anew after so long, so that one that expires is not used much longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Similar:
    """An item that is like another: cosine of their places in the interest space."""

    item: str
    title: str
    cosine: float


class Recommender:
    """Recommends to the users of one domain. Made by `open`.

    Args:
        settings: of the domain.
        engine: `client.recommender.engines`.
        blocked, in_stock: the partner's lists (`client.recommender.filters`).
    """

    def __init__(
        self, settings: ClientSettings, *, engine: str = "auto", blocked: Path | None = None, in_stock: Path | None = None
    ) -> None:
        self.settings = settings
        self._engine = engine
        self._lists = {"blocked": blocked, "in_stock": in_stock}
        self._live = LiveProfiles.of(settings)
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._now = self._open()

    @classmethod
    def open(cls, settings: ClientSettings, *, engine: str = "auto", blocked: Path | None = None, in_stock: Path | None = None) -> Self:
        """Opens what was delivered.

        Raises:
            StateError: nothing was delivered yet.
            DataError, UsageError: the partner's files or lists cannot be used.
            ConfigError: the engine needs an extra that is not installed.
        """
        return cls(settings, engine=engine, blocked=blocked, in_stock=in_stock)

    @property
    def model_version(self) -> str:
        """Run, round and content of what recommends."""
        return self._now.delivered.version

    @property
    def n_items(self) -> int:
        return self._now.delivered.n_items

    @property
    def filters(self) -> Filters:
        return self._now.filters

    @property
    def live(self) -> LiveProfiles:
        """What was observed since the preparation; whoever adds to it changes the next answer."""
        return self._live

    def has_item(self, item: str) -> bool:
        """Whether the catalogue holds an item."""
        return int(self._now.gatherer.positions([item])[0]) >= 0

    @property
    def space(self) -> InterestSpace:
        """The interest space of what recommends: passports and declared vectors belong to it."""
        return self._now.delivered.space

    def reload(self) -> bool:
        """Opens again what has changed: a new delivery, passports, somebody forgotten. Cheap where nothing has; returns whether it did.

        Raises:
            StateError: nothing is delivered any more. Then the state before stays in use, unless the caller stops asking.
        """
        with self._lock:
            now = self._now
            stale = bool(now.delivered.brought) and time.monotonic() - now.at > PASSPORTS_FOR_S
            if not stale and stamp(self.settings) == now.stamp:
                return False
            self._now = self._open()
            return True

    def recommend(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers requests, those that are alike together.

        Raises:
            UsageError: a request asks for what cannot be; `UnknownUser`, `UnknownItem`. None of them is answered then.
        """
        now = self._now
        for request in requests:
            check_length(request.k, now.delivered.n_items)
            check_diversity(request.diversity)
        people = self._people(now, requests)
        answers: dict[int, Answer] = {}
        for manner in dict.fromkeys(request.manner for request in requests):
            rows = np.array([at for at, request in enumerate(requests) if request.manner == manner])
            part = people.select(rows)
            for at, answer in zip(rows.tolist(), self._answers(now, part, [requests[at] for at in rows.tolist()]), strict=True):
                answers[at] = answer
        return [answers[at] for at in range(len(requests))]

    def batch(
        self,
        users: Sequence[str] | pl.Series,
        k: int = 20,
        *,
        diversity: float = 0.0,
        with_seen: bool = False,
        explain: bool = False,
        declared: Mapping[str, str] | None = None,
        even_unknown: bool = False,
        name_of: Callable[[int], str] = lambda position: f"user {position + 1}",
        progress: Progress | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Lists for many users, some thousands at a time; memory does not grow with their number.

        Args:
            users: the partner's own ids, distinct.
            k, diversity, with_seen, explain, even_unknown: as in `Request`.
            declared: user -> interests in their own words.
            name_of: what to call the i-th user in an error, instead of the id.
            progress: called with (users done, users in all).
        Yields:
            frames of `SCHEMA` (`client.recommender.batches`); users in the order given, their items best first.
        Raises:
            UsageError: before the first frame, where lists of k cannot be made, or declared interests not be read; `UnknownUser`.
        """
        now = self._now
        check_length(k, now.delivered.n_items)
        check_diversity(diversity)
        ids = users if isinstance(users, pl.Series) else pl.Series("user", users, dtype=pl.String)
        wanted = Wanted(
            ids=ids,
            names=pseudonym(now.delivered.pseudonym_key, ids),
            declared=self._declared(now, ids, declared or {}),
            k=k,
            diversity=diversity,
            with_seen=with_seen,
            explain=explain,
        )
        if not even_unknown:
            refuse_strangers(now, wanted, name_of)
        return frames(now, wanted, progress)

    def similar(self, item: str, k: int = 10) -> list[Similar]:
        """The items most like one, by their texts.

        Raises:
            UnknownItem: the catalogue lacks it.
            UsageError: it has no text, so it is like nothing; or k is not from 1 to the number of other items.
        """
        now = self._now
        at = now.position(item)
        check_length(k, max(now.delivered.n_items - 1, 1))
        search, d = now.searches[PLAIN], now.delivered.space.dimension
        query = np.zeros((1, search.vectors.shape[1]), dtype=np.float32)
        query[0, :d] = now.delivered.coordinates[at]
        if not query.any():
            raise UsageError("the item has no text, so it has no place among others", do="Give it a text in the catalogue.")
        top = search.exact.search(query, k, excluded=Excluded.of([np.array([at])], now.filters.everywhere))
        there = top.items[0] >= 0
        items, scores = top.items[0][there], top.scores[0][there]
        titles = now.reasons.titles(items)
        ids = now.item_ids.gather(items.astype(np.int64)).to_list()
        return [Similar(item=one, title=title, cosine=float(score)) for one, title, score in zip(ids, titles, scores, strict=True)]

    def explain(self, user: str, item: str) -> Explanation:
        """Why an item would be recommended to a user, or why not.

        Raises:
            UnknownUser, UnknownItem.
        """
        now = self._now
        at = now.position(item)
        people = self._people(now, [Request(user=user)])
        found = now.interests_of(people)
        parts = now.searches[int(now.searches.numbers(found)[0])].parts(people, found, at)
        return now.reasons.of_item(people, found, at, source=now.sources[int(found.sources[0])], parts=parts)

    def all_users(self) -> pl.Series:
        """The partner's own ids of everybody with an account here, as they were when the data were prepared."""
        return PseudonymTable.open(self.settings.at_home("keys") / "external_ids.parquet").external_ids

    def _open(self) -> Opened:
        def lists(delivered: Delivered) -> Filters:
            if not any(self._lists.values()):
                return Filters.none(delivered.n_items)
            data, ids = self.settings.data, delivered.prepared.item_ids
            return read_filters(**self._lists, item_ids=ids, data=data, pseudonym_key=delivered.pseudonym_key)

        return Opened(self.settings, lists, self._engine, self._live)

    def _answers(self, now: Opened, people: People, requests: Sequence[Request]) -> Iterator[Answer]:
        """Of requests that are alike."""
        first = requests[0]
        found = now.interests_of(people)
        top = now.lists(people, found, k=first.k, with_seen=first.with_seen, diversity=first.diversity)
        reasons = now.reasons_of(people, found, top, explain=first.explain).to_list()
        for row, request in enumerate(requests):
            there = np.flatnonzero(top.items[row] >= 0).tolist()
            ids = now.item_ids.gather(top.items[row][there].astype(np.int64)).to_list()
            items = tuple(
                Recommendation(item=item, score=float(top.scores[row, at]), reason=reasons[row * first.k + at])
                for item, at in zip(ids, there, strict=True)
            )
            yield Answer(
                user=request.user,
                items=items,
                source=now.sources[int(found.sources[row])],
                model_version=now.delivered.version,
                uncertainty=float(found.uncertainty[row]),
            )

    def _people(self, now: Opened, requests: Sequence[Request]) -> People:
        """Raises UsageError where a request cannot be read; UnknownUser where nothing is known of one and that is not allowed."""
        named = np.array([request.user is not None for request in requests], dtype=bool)
        users = nobody(len(requests))
        users[named] = pseudonym(now.delivered.pseudonym_key, [request.user for request in requests if request.user is not None])
        declared = np.zeros((len(requests), now.delivered.space.dimension), dtype=np.float32)
        texts = {at: check_declared(request.declared) for at, request in enumerate(requests) if request.declared is not None}
        if texts:
            declared[list(texts)] = self._read(now, list(texts.values()))
        for at, request in enumerate(requests):
            if request.interest is not None:
                if request.declared is not None:
                    raise UsageError("interests are declared in words or as a vector, not both")
                declared[at] = now.checked_interest(request.interest, request.space_version)
        people = now.gatherer.people(users, declared, Ragged.of_lists([now.blocked(request.blocked) for request in requests]))
        for at, request in enumerate(requests):
            if not (people.known[at] or request.even_unknown or request.user is None):
                raise UnknownUser(
                    "the user is not known here" if len(requests) == 1 else f"the user of request {at + 1} is not known here",
                    do="Mend the id; or ask for what is popular, for users of whom nothing is known.",
                )
        return people

    def _declared(self, now: Opened, ids: pl.Series, declared: Mapping[str, str]) -> np.ndarray | None:
        """(n, d) declared interests of a batch; None where nobody declared any."""
        if not declared:
            return None
        texts = [check_declared(text, f"the declared interests of user {at}") for at, text in enumerate(declared.values(), start=1)]
        vectors = np.zeros((len(texts) + 1, now.delivered.space.dimension), dtype=np.float32)
        vectors[:-1] = self._read(now, texts)
        place = pl.DataFrame({"user": list(declared), "at": np.arange(len(texts))}, schema={"user": pl.String, "at": pl.Int64})
        rows = ids.to_frame("user").join(place, on="user", how="left", maintain_order="left")["at"].fill_null(len(texts))
        return np.asarray(vectors[rows.to_numpy()])

    def _read(self, now: Opened, texts: list[str]) -> np.ndarray:
        """(n, d) places of declared interests, zeros where the model cannot read them; what a person typed is kept nowhere: no cache."""
        with self._reading:  # a model is loaded once, whoever comes first
            vectors, read = self._encoder.encode(texts), self._encoder.legible(texts)
        return np.where(read[:, None], now.delivered.space.project(vectors), np.float32(0.0))

    @cached_property
    def _encoder(self) -> TextEncoder:
        compute = self._now.delivered.config.compute
        how = {"batch_tokens": compute.text_batch_tokens, "threads": compute.torch_threads}
        return make_text_encoder(self.settings.text_model, self.settings.text_precision, cache=None, **how)
