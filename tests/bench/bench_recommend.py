"""A night's lists for everybody, all the way from histories on disk to a Parquet file, beside a plain numpy product over the same vectors.

One shop with skewed popularity, really prepared, trained for one round and delivered; only the language model is left out (its vectors
are drawn, and put where it keeps what it has encoded). The plain way gets the finished queries for nothing: it takes the product of 200
users at a time, masks, partitions and sorts. It writes no file and knows no reasons.
"""

from __future__ import annotations

import dataclasses
import hashlib
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from client import delivery, queries, rounds
from client.data.pseudonyms import pseudonym
from client.model.text_encoder import TextEncoder, normalised
from client.model.vector_cache import VectorCache
from client.recommender.batches import USERS_AT_A_TIME
from client.recommender.output import write
from client.recommender.recommender import Recommender
from client.settings import BenchmarkSettings, ClientSettings
from shared import wire
from shared.config import ModelConfig, RunConfig
from shared.interest_space import InterestSpace, Moments
from shared.transfer_layer import initial_arrays
from tests.client import partner_world
from tests.client.partner_world import RUN

K, PLAIN_ROWS, ITEMS_PER_USER = 20, 200, 12


def shop(root: Path, users: int, items: int) -> ClientSettings:
    """A shop that was delivered: every user has a few items near one place of the catalogue."""
    partner_world.settings(root, "films", root / "texts")
    folder, generator = root / "films", np.random.default_rng(0)
    texts = [f"title {n}. films" for n in range(items)]
    pl.DataFrame(
        {"item_id": [f"i{n}" for n in range(items)], "title": [f"title {n}" for n in range(items)], "categories": "films"}
    ).write_csv(folder / "items.csv")
    centres = generator.normal(size=(100, 384))
    vectors = centres[np.arange(items) * 100 // items] + 2.0 * generator.normal(size=(items, 384))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    encoder = TextEncoder(cache=root / "texts")
    keys = [hashlib.sha256(normalised(text).encode()).digest() for text in texts]
    VectorCache(root / "texts" / encoder.model_hash[:32], encoder.dimension).add(keys, vectors)
    place = generator.integers(0, items, users)[:, None]
    near = (place + (generator.normal(size=(users, ITEMS_PER_USER)) * items / 200).astype(np.int64)) % items
    popular = (generator.pareto(1.2, size=near.shape) * 5).astype(np.int64) % items
    taken = np.where(generator.random(near.shape) < 0.3, popular, near).ravel()
    rows = {"user_id": np.repeat(np.arange(users), ITEMS_PER_USER), "item": taken, "timestamp": np.tile(np.arange(ITEMS_PER_USER), users)}
    frame = pl.DataFrame(rows).select(pl.format("u{}", "user_id").alias("user_id"), pl.format("i{}", "item").alias("item_id"), "timestamp")
    frame.write_csv(folder / "interactions.csv")
    (folder / "links.csv").write_text("user_id,partner,link_id\n")
    dataclasses.replace(ClientSettings.read(folder / "partner.toml"), benchmark=BenchmarkSettings()).write(folder / "partner.toml")
    settings = ClientSettings.read(folder / "partner.toml")
    config: RunConfig = dataclasses.replace(partner_world.CONFIG, model=ModelConfig())
    partner_world.ledger(settings)
    queries.hello(settings, wire.Hello(run_id=RUN, config_toml=config.to_toml()))
    reply = queries.moments(settings, wire.MomentsQuery(run_id=RUN))
    if not isinstance(reply, wire.MomentsReply):
        raise TypeError("the shop declined")
    space = InterestSpace.from_moments([Moments(reply.count, reply.total, reply.outer)], config.model.dimension)
    space = space.with_prototypes([np.eye(config.model.dimension, dtype=np.float32)], config.model.prototypes, 0)
    queries.descriptor(settings, partner_world.descriptor_query(space))
    arrays = initial_arrays(config.model, 3)
    instruction = wire.RoundInstruction(run_id=RUN, round=1, config_hash=config.config_hash, arrays=arrays)
    rounds.train(settings, instruction, bundle_digest="b" * 64, code_version="0")
    delivery.deliver(settings, wire.Deliver(run_id=RUN, round=1, arrays=arrays))
    return settings


def plain(wanted: np.ndarray, vectors: np.ndarray, offsets: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """What one writes first: (users, K) items."""
    found = np.empty((len(wanted), K), dtype=np.int64)
    for start in range(0, len(wanted), PLAIN_ROWS):
        stop = min(start + PLAIN_ROWS, len(wanted))
        scores = wanted[start:stop] @ vectors.T
        rows = np.repeat(np.arange(stop - start), np.diff(offsets[start : stop + 1]))
        scores[rows, seen[offsets[start] : offsets[stop]]] = -np.inf
        best = np.argpartition(scores, len(vectors) - K, axis=1)[:, len(vectors) - K :]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        found[start:stop] = np.take_along_axis(best, order, axis=1)
    return found


def run(quick: bool) -> dict[str, float]:
    """Users a second, memory, and the time against plain numpy, slice by slice in turns."""
    users, items = (3_000, 1_000) if quick else (100_000, 20_000)
    with tempfile.TemporaryDirectory() as root:
        settings, out = shop(Path(root), users, items), Path(root) / "recs.parquet"
        recommender = Recommender.open(settings)
        everybody = recommender.all_users()
        list(recommender.batch(everybody[:USERS_AT_A_TIME], K, explain=True))  # warms up
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        write(out, recommender.batch(everybody, K))
        spent = time.perf_counter() - begun
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        turns = np.array([_turn(recommender, everybody[at : at + USERS_AT_A_TIME], out) for at in range(0, users, 2 * USERS_AT_A_TIME)])
        length = recommender._now.searches[_search(recommender, everybody[:1])].vectors.shape[1]
    brief, explained, alone = turns.T
    return {
        "users a second, to a Parquet file": users / spent,
        "against numpy product, partition and sort alone": float(np.median(brief / alone)),
        "the same with reasons in words": float(np.median(explained / alone)),
        "length of a vector": float(length),
        "MiB beyond what was open": memory,
    }


def _turn(recommender: Recommender, users: pl.Series, out: Path) -> tuple[float, float, float]:
    """Seconds for the lists of some users: ours, ours with reasons in words, and the plain way."""
    now = recommender._now
    people = now.gatherer.people(pseudonym(now.delivered.pseudonym_key, users))
    found = now.interests_of(people)
    search = now.searches[_search(recommender, users)]
    wanted = search.queries(people, found)
    spent = []
    for way in (
        lambda: write(out, recommender.batch(users, K)),
        lambda: write(out, recommender.batch(users, K, explain=True)),
        lambda: plain(wanted, search.vectors, people.own.offsets, people.own.items),
    ):
        begun = time.perf_counter()
        way()
        spent.append(time.perf_counter() - begun)
    return spent[0], spent[1], spent[2]


def _search(recommender: Recommender, users: pl.Series) -> int:
    """Which search these users need: all have a history, so it is the same for all."""
    now = recommender._now
    found = now.interests_of(now.gatherer.people(pseudonym(now.delivered.pseudonym_key, users)))
    (number,) = set(now.searches.numbers(found).tolist())
    return int(number)
