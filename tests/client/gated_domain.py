"""A domain behind the gate, with a real ledger and real Flower messages, and everything that a handler could smuggle."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_to_proto

from client.egress import Border, Gate
from client.ledger_lookup import round_record
from shared import wire
from shared.config import ModelConfig, RunConfig
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.ledger_file import confirmed
from shared.privacy.manifest import ManifestLine, read_manifest
from shared.privacy.mechanism import Mechanism
from shared.transfer_layer import initial_arrays
from tests.shared.privacy.bookshop import KEYS

MARKER = "user-4711-anna"
CONFIG = RunConfig(model=ModelConfig(dimension=8, rank=2, descriptor_dimension=4, prototypes=5))
TEXT_DIMENSION = 6
RUN, ROUND = "run-1", 3
MECHANISM = Mechanism(kind="poisson_gaussian", sampling_rate=0.1, noise_multiplier=2.0, clip_norm=0.5, grid=2.0**-21, dimension=48, steps=1)
Handler = Callable[[Message, Context], Any]


@dataclass
class Domain:
    """One domain's side: its ledger, what it agreed to, and where its manifest is."""

    manifest: Path
    ledger: Path
    name: str = "arts"
    config: RunConfig | None = field(default_factory=lambda: CONFIG)
    shares: frozenset[str] = frozenset({wire.MOMENTS, wire.CENTROIDS, wire.DESCRIPTOR})

    def border(self, context: Context) -> Border:
        return Border(
            domain=self.name,
            manifest=self.manifest,
            ledger_lookup=functools.partial(round_record, self.ledger),
            ledger_mark=functools.partial(confirmed, self.ledger),
            run_config=lambda: self.config,
            shares=self.shares,
            text_dimension=TEXT_DIMENSION,
        )

    def intend(self, round: int = ROUND) -> int:
        with Ledger.open(self.ledger, signer=KEYS) as ledger:
            return ledger.intent(
                run_id=RUN, round=round, mechanism=MECHANISM, config_hash=CONFIG.config_hash, bundle_digest="b" * 64, code_version="0"
            )

    def commit(self, update: wire.TransferUpdate) -> wire.TransferUpdate:
        """Books an intent and the update, or finds it booked, and adds the receipt."""
        if round_record(self.ledger, RUN, ROUND).committed is None:
            attempt = self.intend()
            with Ledger.open(self.ledger, signer=KEYS) as ledger:
                ledger.commit(run_id=RUN, round=ROUND, attempt=attempt, payload_sha256=update.digest())
        committed = round_record(self.ledger, RUN, ROUND).committed
        assert committed is not None
        return update.with_receipt(committed.receipt("arts", KEYS))

    @property
    def commit_hash(self) -> str:
        (commit,) = (event for event in read_events(self.ledger) if event.kind == "commit")
        return commit.hash

    @property
    def lines(self) -> list[ManifestLine]:
        """Of a manifest whose chain holds."""
        reading = read_manifest(self.manifest)
        assert (reading.intact, reading.torn) == (True, False)
        return list(reading.lines)

    @property
    def reasons(self) -> list[str]:
        return [line.why for line in self.lines if line.event == "blocked"]


def update(**changes: Any) -> wire.TransferUpdate:
    arrays = {name: array + 0.5 for name, array in initial_arrays(CONFIG.model, 1).items()}
    said = {"count_of_intents": 1, "head_hash": "c" * 64, "payload_sha256": "0" * 64, "mechanism": '{"kind":"none"}', "epsilon_spent": 1.5}
    receipt = wire.Receipt.signed(KEYS, domain="arts", **said)
    values: dict[str, Any] = {"run_id": RUN, "round": ROUND, "config_hash": CONFIG.config_hash, "arrays": arrays, "receipt": receipt}
    return wire.TransferUpdate(**{**values, **changes})


def instruction(kind: str = wire.TRAIN) -> RecordDict:
    layer = initial_arrays(CONFIG.model, 0)
    space = {
        "mean": np.zeros(TEXT_DIMENSION, np.float32),
        "basis": np.zeros((TEXT_DIMENSION, 8), np.float32),
        "scale": np.ones(8, np.float32),
    }
    records: dict[str, wire.Record] = {
        wire.HELLO: wire.Hello(run_id=RUN, config_toml=CONFIG.to_toml()),
        wire.MOMENTS: wire.MomentsQuery(run_id=RUN),
        wire.CENTROIDS: wire.CentroidsQuery(**space),
        wire.DESCRIPTOR: wire.DescriptorQuery(**space, prototypes=np.zeros((5, 8), np.float32)),
        wire.TRAIN: wire.RoundInstruction(run_id=RUN, round=ROUND, config_hash=CONFIG.config_hash, arrays=layer),
        wire.DELIVER: wire.Deliver(run_id=RUN, round=ROUND, arrays=layer),
    }
    return records[kind].pack()


def received(content: RecordDict, kind: str) -> Message:
    """A message as it arrives: from the server's process, through protobuf."""
    message = Message(content, dst_node_id=9, message_type=kind, group_id=str(ROUND), ttl=600.0)
    return message_from_proto(message_to_proto(message))


def context() -> Context:
    return Context(run_id=1, node_id=9, node_config={"partition-id": 0}, state=RecordDict(), run_config={})


def app_of(handler: Handler, domain: Domain) -> Gate:
    app = Gate(ClientApp(), border=domain.border)
    app.train()(handler)
    for action in ("hello", "moments", "centroids", "descriptor", "deliver"):
        app.query(action)(handler)
    return app


def sent(app: ClientApp, content: RecordDict | None = None, kind: str = wire.TRAIN) -> Message:
    """What Flower would send: also through protobuf, and looked through for the marker, metadata included."""
    reply = app(message=received(instruction(kind) if content is None else content, kind), context=context())
    proto = message_to_proto(reply)
    assert MARKER.encode() not in proto.SerializeToString()
    assert not reply.has_error()
    return message_from_proto(proto)


def answer(handler: Handler, domain: Domain, kind: str = wire.TRAIN) -> Message:
    return sent(app_of(handler, domain), kind=kind)


def content_bytes(message: Message) -> bytes:
    return bytes(recorddict_to_proto(message.content).SerializeToString(deterministic=True))


UNAVAILABLE = recorddict_to_proto(wire.Unavailable().pack()).SerializeToString(deterministic=True)


def assert_stopped(reply: Message, domain: Domain, reason: str) -> None:
    assert content_bytes(reply) == UNAVAILABLE
    assert domain.reasons == [reason]
    assert [line.schema for line in domain.lines] == [None, "Unavailable"]
    blocked = domain.lines[0]
    assert (blocked.bytes, blocked.sha256, blocked.ledger_event) == (None, None, None)
    assert MARKER not in domain.manifest.read_text()


def committed_then(change: Callable[[RecordDict], None], domain: Domain) -> Handler:
    """A handler that trains, commits, and then slips."""

    def handler(message: Message, context: Context) -> Message:
        content = domain.commit(update()).pack()
        change(content)
        return Message(content, reply_to=message)

    return handler


def nothing(content: RecordDict) -> None:
    """Changes nothing."""


def _array(message: str) -> Array:
    return Array(np.frombuffer(message.encode().ljust(16, b"\0"), dtype=np.float32).copy())


def set_value(record: str, key: str, value: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[record][key] = value

    return change


def _swap_array(make: Callable[[np.ndarray], Array]) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        arrays = content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        arrays["transfer.reader"] = make(arrays["transfer.reader"].numpy())

    return change


def _poisoned(value: float) -> Callable[[np.ndarray], Array]:
    def make(array: np.ndarray) -> Array:
        array = array.copy()
        array[0, 0] = value
        return Array(array)

    return make


def _with_bytes(change: Callable[[bytes], bytes]) -> Callable[[np.ndarray], Array]:
    def make(array: np.ndarray) -> Array:
        plain = Array(array)
        return Array(dtype=plain.dtype, shape=plain.shape, stype=plain.stype, data=change(plain.data))

    return make


def _other_label(**labels: Any) -> Callable[[np.ndarray], Array]:
    def make(array: np.ndarray) -> Array:
        plain = Array(array)
        return Array(**{"dtype": plain.dtype, "shape": plain.shape, "stype": plain.stype, "data": plain.data, **labels})

    return make


ATTACKS: dict[str, Callable[[RecordDict], None]] = {
    "an extra array": set_value("arrays", "transfer.more", _array("x")),
    "an extra array with a user id in it": set_value("arrays", "transfer.more", _array(MARKER)),
    "a user id hidden in an array name": set_value("arrays", MARKER, _array("x")),
    "an extra metric": set_value("metrics", "loss", 0.25),
    "a user id hidden in a metric name": set_value("metrics", MARKER, 1.0),
    "a user id hidden in a field name": set_value("fields", MARKER, 1),
    "a user id hidden in a receipt field": set_value("receipt", "note", MARKER),
    "a user id hidden in a record name": lambda content: content.update({MARKER: MetricRecord({})}),
    "an extra record": lambda content: content.update({"log": ConfigRecord({"text": MARKER})}),
    "an empty extra record": lambda content: content.update({"log": ConfigRecord({})}),
    "the number of users as weight": set_value("metrics", "weight", 4711.0),
    "a weight of minus one": set_value("metrics", "weight", -1.0),
    "a weight that is not finite": set_value("metrics", "weight", float("nan")),
    "a whole weight": set_value("metrics", "weight", 1),
    "a list of weights": set_value("metrics", "weight", [1.0, 4711.0]),
    "a user id as run id": set_value("fields", "run_id", MARKER + " "),
    "a value that is not a number": _swap_array(_poisoned(float("nan"))),
    "an infinite value": _swap_array(_poisoned(float("inf"))),
    "a value out of range": _swap_array(_poisoned(1e30)),
    "double precision": _swap_array(lambda array: Array(array.astype(np.float64))),
    "another shape": _swap_array(lambda array: Array(array.T.copy())),
    "one row more": _swap_array(lambda array: Array(np.vstack([array, array[:1]]))),
    "a user id after the array's end": _swap_array(_with_bytes(lambda data: data + MARKER.encode())),
    "a user id in the array's header": _swap_array(_with_bytes(lambda data: data.replace(b"'descr'", b"'" + MARKER.encode()[:5] + b"'"))),
    "an array cut short": _swap_array(_with_bytes(lambda data: data[:-4])),
    "a pickle in place of an array": _swap_array(_with_bytes(lambda data: b"\x80\x04" + data)),
    "a user id as serialisation type": _swap_array(_other_label(stype=MARKER)),
    "a user id as dtype": _swap_array(_other_label(dtype=MARKER)),
    "a number of users as declared shape": _swap_array(_other_label(shape=(4711, 8))),
    "no arrays": lambda content: content.update({"arrays": ArrayRecord()}),
    "no receipt": lambda content: content.__delitem__("receipt"),
    "a status beside the update": lambda content: content.update(wire.Unavailable().pack()),
    "a receipt with an unlisted mechanism field": set_value("receipt", "mechanism", json.dumps({"kind": ["x"], "user": MARKER})),
}
