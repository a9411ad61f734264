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
    """Users a second, memory, and the time against plain numpy."""
    users, items = (3_000, 1_000) if quick else (100_000, 20_000)
    with tempfile.TemporaryDirectory() as root:
        settings = shop(Path(root), users, items)
        begun = time.perf_counter()
        recommender = Recommender.open(settings)
        opening = time.perf_counter() - begun
        everybody = recommender.all_users()
        list(recommender.batch(everybody[:2000], K))  # warms up
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent = {}
        for explain in (False, True):
            begun = time.perf_counter()
            some = everybody if not explain else everybody[: users // 5]
            write(Path(root) / "recs.parquet", recommender.batch(some, K, explain=explain))
            spent[explain] = (time.perf_counter() - begun) / len(some)
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        now = recommender._now
        part = everybody[: users // 5]
        people = now.gatherer.people(pseudonym(now.delivered.pseudonym_key, part))
        found = now.interests_of(people)
        search = now.searches[int(now.searches.numbers(found)[0])]
        wanted = search.queries(people, found)
        begun = time.perf_counter()
        lists = plain(wanted, search.vectors, people.own.offsets, people.own.items)
        alone = (time.perf_counter() - begun) / len(part)
        ours = now.lists(people, found, k=K, with_seen=False, diversity=0.0).items
        if search.extra(people) is None and (np.sort(ours, axis=1) == np.sort(lists, axis=1)).mean() < 0.999:
            raise AssertionError("the two ways find different items")
    return {
        "users a second, to a Parquet file": 1 / spent[False],
        "users a second, with reasons in words": 1 / spent[True],
        "against the numpy product, partition and sort alone": spent[False] / alone,
        "with reasons in words, against the same": spent[True] / alone,
        "length of a vector": float(search.vectors.shape[1]),
        "MiB beyond what was open": memory,
        "seconds to open": opening,
    }
