"""A small but real ClientApp on the wire: deterministic answers, a count of intents that outlives messages, and faults on demand.

It trains nothing. A round adds (client + 1) / 100 to every shared array, so the layer after R rounds of plain averaging over clients 0..n-1
is the initial one plus R * mean(1..n) / 100.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from shared import wire
from shared.config import RunConfig
from shared.interest_space import InterestSpace, Moments, centroids
from shared.privacy.mechanism import Mechanism
from shared.privacy.receipts import SignedReceipt
from shared.privacy.signing import SigningPair

TEXT = 12
DOMAINS = ("arts", "books", "cameras", "drums")
KEYS = tuple(SigningPair(bytes([client + 1]) * 32) for client in range(len(DOMAINS)))
Fault = Callable[[int, int, RecordDict], RecordDict]
"""(client, round, honest content) -> content that is sent; round 0 stands for every other message."""


def small_config(**changes: dict[str, object]) -> RunConfig:
    """Three rounds of a model that is quick to send."""
    values: dict[str, dict[str, object]] = {
        "model": {"dimension": 4, "rank": 2, "descriptor_dimension": 3, "prototypes": 3},
        "privacy": {"rounds": 3, "noise_multiplier": 1.0, "steps_per_round": 2, "sampling_rate": 0.1},
        "aggregation": {"wait_s": 0.3, "round_timeout_s": 30.0},
    }
    for table, keys in changes.items():
        values.setdefault(table, {}).update(keys)
    return RunConfig.from_mapping({"name": "tiny", **values})


def honest(client: int, round: int, content: RecordDict) -> RecordDict:
    del client, round
    return content


def catalogue(client: int) -> np.ndarray:
    """(20 + client, TEXT) unit rows."""
    rows = np.random.default_rng(client).normal(size=(20 + client, TEXT))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def tiny_app(folder: Path, fault: Fault = honest, shares_catalogue: bool = True) -> ClientApp:
    """The app. ``folder`` plays the clients' disks: hello's configuration, updates by idempotency key, count of intents, receipts shown."""
    app = ClientApp()

    def client_of(context: Context) -> int:
        return int(context.node_config["partition-id"])

    def config_of(client: int) -> RunConfig:
        return RunConfig.from_toml((folder / f"{client}.toml").read_text())

    def reply(message: Message, client: int, content: RecordDict, round: int = 0) -> Message:
        return Message(fault(client, round, content), reply_to=message)

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        client, question = client_of(context), wire.Hello.unpack(message.content)
        (folder / f"{client}.toml").write_text(question.config_toml)
        return reply(message, client, wire.HelloReply(domain=DOMAINS[client]).pack())

    @app.query("moments")
    def moments(message: Message, context: Context) -> Message:
        client, found = client_of(context), Moments.of(catalogue(client_of(context)))
        answer = wire.MomentsReply(count=found.count, total=found.total, outer=found.outer, catalogue_hash="ab" * 32)
        return reply(message, client, (answer if shares_catalogue or client == 0 else wire.Declined()).pack())

    @app.query("centroids")
    def centroids_of(message: Message, context: Context) -> Message:
        client, question = client_of(context), wire.CentroidsQuery.unpack(message.content)
        space = InterestSpace(
            mean=question.mean, basis=question.basis, scale=question.scale, prototypes=np.zeros((0, question.scale.shape[0]), np.float32)
        )
        rows = centroids(space.project(catalogue(client)), config_of(client).model.prototypes, 0)
        return reply(message, client, wire.CentroidsReply(centroids=rows).pack())

    @app.query("descriptor")
    def descriptor(message: Message, context: Context) -> Message:
        client, q = client_of(context), wire.DescriptorQuery.unpack(message.content)
        space = InterestSpace(mean=q.mean, basis=q.basis, scale=q.scale, prototypes=q.prototypes)
        length = config_of(client).model.descriptor_dimension
        return reply(message, client, wire.DescriptorReply(descriptor=space.descriptor(space.project(catalogue(client)), length)).pack())

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, question = client_of(context), wire.RoundInstruction.unpack(message.content)
        with (folder / f"{client}.shown").open("a") as file:
            file.write(question.last_receipt + "\n")
        return reply(message, client, trained(folder, client, question, config_of(client)).pack(), question.round)

    @app.query("deliver")
    def deliver(message: Message, context: Context) -> Message:
        client, question = client_of(context), wire.Deliver.unpack(message.content)
        (folder / f"{client}.delivered").write_text(wire.layer_sha256(question.arrays))
        return reply(message, client, wire.Ok().pack())

    return app


def trained(folder: Path, client: int, question: wire.RoundInstruction, config: RunConfig) -> wire.TransferUpdate:
    """One round. The same round on the same layer costs one intent only, however often it is asked for."""
    key = f"{question.run_id} {question.round} {wire.layer_sha256(question.arrays)}"
    path = folder / f"{client}.intents"
    intents: list[str] = json.loads(path.read_text()) if path.exists() else []
    if key not in intents:
        intents.append(key)
        path.write_text(json.dumps(intents))
    count = intents.index(key) + 1
    arrays = {name: array + np.float32((client + 1) / 100) for name, array in question.arrays.items()}
    privacy = config.privacy
    mechanism = Mechanism(
        kind="poisson_gaussian",
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=privacy.clip_norm,
        grid=privacy.grid,
        dimension=100,
        steps=privacy.steps_per_round,
    )
    receipt = SignedReceipt.signed(
        KEYS[client],
        domain=DOMAINS[client],
        count_of_intents=count,
        head_hash=f"{count:064x}",
        payload_sha256=wire.payload_sha256(question.run_id, question.round, question.config_hash, arrays),
        mechanism=wire.canonical_json(mechanism.to_record()),
        epsilon_spent=0.1 * count,
    )
    return wire.TransferUpdate(
        run_id=question.run_id, round=question.round, config_hash=question.config_hash, arrays=arrays, receipt=receipt
    )


def shown(folder: Path, client: int) -> list[str]:
    """The last receipts that came with the rounds, as texts."""
    return (folder / f"{client}.shown").read_text().splitlines()


def intents(folder: Path, client: int) -> int:
    """How many rounds a client paid for."""
    path = folder / f"{client}.intents"
    return len(json.loads(path.read_text())) if path.exists() else 0
