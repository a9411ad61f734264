"""The service under eight parallel callers, beside the same recommender called in the same manner inside one process.

One shop of 20,000 items in 64 dimensions, really encoded, trained for one round and delivered; lists of 20 for single users. The service
runs as a process of its own, as `isthmus-client serve` starts it; the eight callers are threads of this process, with a channel each. The
named alternative is `Recommender.recommend` for one user at a time, called by eight threads of a program that holds the recommender itself:
no network, no service. Both have one thread for numbers, and are measured in turns, because a machine is never the same for long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np

from client import delivery, queries, rounds
from client.recommender.recommender import Recommender
from client.recommender.requests import Request
from client.serving_wire import CLASSES, SERVICE
from client.settings import ClientSettings
from shared import wire
from shared.config import ModelConfig, RunConfig
from shared.interest_space import InterestSpace, Moments
from shared.transfer_layer import initial_arrays
from tests.client import partner_world
from tests.client.partner_world import RUN
from tests.client.passport_office import free_port
from tests.client.recommender import shops

AIMS = {
    "8 callers: p50 of the service against in-process calls": ("<=", 1.0),
    "8 callers: answers a second against in-process calls": (">=", 1.0),
}

CALLERS, K = 8, 20
_TURNS = 6


def shop(root: Path, items: int) -> ClientSettings:
    """A shop that was delivered."""
    shops.ITEMS = items
    settings = shops.shop(root, "films", root / "texts")
    config: RunConfig = dataclasses.replace(partner_world.CONFIG, model=ModelConfig())
    partner_world.ledger(settings)
    queries.hello(settings, wire.Hello(run_id=RUN, config_toml=config.to_toml()))
    reply = queries.moments(settings, wire.MomentsQuery(run_id=RUN))
    if not isinstance(reply, wire.MomentsReply):
        raise TypeError("the shop declined")
    space = InterestSpace.from_moments([Moments(reply.count, reply.total, reply.outer)], config.model.dimension)
    asked = wire.CentroidsQuery(mean=space.mean, basis=space.basis, scale=space.scale)
    found = queries.prototype_centroids(settings, asked)
    if not isinstance(found, wire.CentroidsReply):
        raise TypeError("the shop declined")
    space = space.with_prototypes([found.centroids], config.model.prototypes, 0)
    queries.descriptor(settings, partner_world.descriptor_query(space))
    arrays = initial_arrays(config.model, 3)
    instruction = wire.RoundInstruction(run_id=RUN, round=1, config_hash=config.config_hash, arrays=arrays)
    rounds.train(settings, instruction, bundle_digest="b" * 64, code_version="0")
    delivery.deliver(settings, wire.Deliver(run_id=RUN, round=1, arrays=arrays))
    return settings


@contextlib.contextmanager
def service(settings: ClientSettings) -> Iterator[str]:
    """A running service. Yields its address."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "client.cli", "serve", str(settings.base / "partner.toml"), "--listen", address]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=300)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def latencies(calls: list[Callable[[str], None]], seconds: float) -> np.ndarray:
    """Seconds of each call, of callers that call one after the other without a pause, all at the same time."""
    found: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds

    def caller(number: int) -> None:
        generator = np.random.default_rng(number)
        while (begun := time.perf_counter()) < end:
            calls[number](f"p{generator.integers(shops.LINKED):03d}")
            found[number].append(time.perf_counter() - begun)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.concatenate([np.array(one) for one in found])


def run(quick: bool) -> dict[str, float]:
    """Latencies in milliseconds, throughput, and both against in-process calls; one thread for numbers, from the start of a process on."""
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "no_proxy": "127.0.0.1"}
    command = [sys.executable, __file__, str(int(quick))]
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(quick: bool) -> dict[str, float]:
    items, seconds = (500, 0.5) if quick else (20_000, 3.0)
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as stack:
        settings = shop(Path(root), items)
        recommender = Recommender.open(settings)
        address = stack.enter_context(service(settings))
        channels = [stack.enter_context(grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])) for _ in range(CALLERS)]
        asks = [one.unary_unary(f"/{SERVICE}/Recommend", response_deserializer=CLASSES["RecommendReply"].FromString) for one in channels]

        def over_the_wire(ask: Callable[..., object]) -> Callable[[str], None]:
            def call(user: str) -> None:
                ask(CLASSES["RecommendRequest"](user=user, k=K).SerializeToString(), timeout=60)

            return call

        def in_process(user: str) -> None:
            recommender.recommend([Request(user=user, k=K)])

        ways = {"service": [over_the_wire(ask) for ask in asks], "in process": [in_process] * CALLERS}
        for calls in ways.values():
            latencies(calls, seconds / 3)  # warm
        measured = {(name, n): [latencies(calls[:n], seconds) for _ in range(1)] for name, calls in ways.items() for n in (1, CALLERS)}
        for _ in range(_TURNS - 1):
            for (name, n), parts in measured.items():
                parts.append(latencies(ways[name][:n], seconds))
    return figures({key: np.concatenate(parts) for key, parts in measured.items()}, seconds * _TURNS)


def figures(measured: dict[tuple[str, int], np.ndarray], seconds: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for (name, n), taken in measured.items():
        who = f"{name}, {n} caller{'s' if n > 1 else ''}"
        found[f"{who}: p50, ms"] = float(np.percentile(taken, 50)) * 1e3
        found[f"{who}: p99, ms"] = float(np.percentile(taken, 99)) * 1e3
        found[f"{who}: answers a second"] = len(taken) / seconds
    for n, who in ((1, "1 caller"), (CALLERS, f"{CALLERS} callers")):
        ours, theirs = measured["service", n], measured["in process", n]
        found[f"{who}: p50 of the service against in-process calls"] = float(np.percentile(ours, 50) / np.percentile(theirs, 50))
        found[f"{who}: p99 of the service against in-process calls"] = float(np.percentile(ours, 99) / np.percentile(theirs, 99))
        found[f"{who}: answers a second against in-process calls"] = len(ours) / len(theirs)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(bool(int(sys.argv[1])))))
