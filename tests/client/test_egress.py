"""The gate: each test is an attack, an accident or a slip, and nothing of it may be found in what left."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import shutil
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.utils import get_load_client_app_fn
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity

from client.egress import WHY, Border, Gate, gate_mod
from client.egress_manifest import ManifestLine, read_manifest
from client.ledger_lookup import RoundRecord, round_record
from shared import wire
from shared.config import ModelConfig, RunConfig
from shared.errors import REFUSAL_CODES, BudgetExhausted, InvalidInteraction, Refusal
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.mechanism import Mechanism
from shared.transfer_layer import initial_arrays

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
    shares_catalogue: bool = True

    def border(self, context: Context) -> Border:
        return Border(
            domain=self.name,
            manifest=self.manifest,
            ledger_lookup=functools.partial(round_record, self.ledger),
            run_config=lambda: self.config,
            shares_catalogue=self.shares_catalogue,
            text_dimension=TEXT_DIMENSION,
        )

    def intend(self, round: int = ROUND) -> int:
        with Ledger.open(self.ledger) as ledger:
            return ledger.intent(
                run_id=RUN, round=round, mechanism=MECHANISM, config_hash=CONFIG.config_hash, bundle_digest="b" * 64, code_version="0"
            )

    def commit(self, update: wire.TransferUpdate) -> wire.TransferUpdate:
        """Books an intent and the update, or finds it booked, and adds the receipt."""
        if round_record(self.ledger, RUN, ROUND).committed is None:
            attempt = self.intend()
            with Ledger.open(self.ledger) as ledger:
                ledger.commit(run_id=RUN, round=ROUND, attempt=attempt, payload_sha256=update.digest())
        committed = round_record(self.ledger, RUN, ROUND).committed
        assert committed is not None
        return update.with_receipt(wire.Receipt(domain="arts", **{f.name: getattr(committed, f.name) for f in fields(committed)}))

    @property
    def commit_hash(self) -> str:
        (commit,) = (event for event in read_events(self.ledger) if event.kind == "commit")
        return commit.hash

    @property
    def lines(self) -> list[ManifestLine]:
        return read_manifest(self.manifest)

    @property
    def reasons(self) -> list[str]:
        return [line.why for line in self.lines if line.event == "blocked"]


@pytest.fixture(scope="module")
def admitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger in which the run is admitted; each test works on its own copy."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    with Ledger.create(path, domain="arts", ceiling_epsilon=8.0, delta=1e-6, set_by="the partner") as ledger:
        ledger.admit(run_id=RUN, config_hash=CONFIG.config_hash, mechanism=MECHANISM, rounds=4, reserve=1)
    return path


@pytest.fixture
def domain(tmp_path: Path, admitted: Path) -> Domain:
    for file in admitted.parent.iterdir():
        shutil.copy(file, tmp_path / file.name)
    return Domain(manifest=tmp_path / "egress.jsonl", ledger=tmp_path / admitted.name)


@pytest.fixture(autouse=True)
def node(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower wants to know whose process this is; and what the gate logs on this machine stays out of the test's output."""
    for name, value in {"_run_id": 1, "_node_id": 2, "_task_id": 3}.items():
        monkeypatch.setattr(TaskIdentity, name, value)
    caplog.set_level(logging.CRITICAL, logger="isthmus.egress")


def update(**changes: Any) -> wire.TransferUpdate:
    arrays = {name: array + 0.5 for name, array in initial_arrays(CONFIG.model, 1).items()}
    receipt = wire.Receipt(
        domain="arts", count_of_intents=1, head_hash="c" * 64, payload_sha256="0" * 64, mechanism='{"kind":"none"}', epsilon_spent=1.5
    )
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


# --- what may leave ----------------------------------------------------------------------------------------------------------------


def test_a_committed_update_leaves_and_the_manifest_says_so(domain: Domain) -> None:
    reply = answer(committed_then(lambda content: None, domain), domain)
    left = wire.reply_schema(wire.TRAIN, CONFIG).read(reply.content)
    assert isinstance(left, wire.TransferUpdate)
    assert left.digest() == update().digest()
    (line,) = domain.lines
    assert (line.event, line.kind, line.round, line.schema, line.ledger_event) == (
        "left",
        "train",
        ROUND,
        "TransferUpdate",
        domain.commit_hash,
    )
    assert line.bytes == len(content_bytes(reply))
    assert line.why == WHY["TransferUpdate"]
    assert stat.S_IMODE(domain.manifest.stat().st_mode) == 0o600


_CATALOGUE: dict[str, wire.Record] = {
    wire.MOMENTS: wire.MomentsReply(count=3, total=np.ones(6), outer=np.eye(6), catalogue_hash="ab" * 8),
    wire.CENTROIDS: wire.CentroidsReply(centroids=np.zeros((5, 8), np.float32)),
    wire.DESCRIPTOR: wire.DescriptorReply(descriptor=np.zeros(4, np.float32)),
}


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        (wire.HELLO, wire.HelloReply(domain="arts")),
        (wire.DELIVER, wire.Ok()),
        (wire.MOMENTS, wire.Declined()),
        (wire.TRAIN, wire.Unavailable()),
        *_CATALOGUE.items(),
    ],
)
def test_each_kind_has_its_reply(domain: Domain, kind: str, reply: Any) -> None:
    expected = reply.pack()
    got = answer(lambda message, _: Message(reply.pack(), reply_to=message), domain, kind)
    assert content_bytes(got) == recorddict_to_proto(expected).SerializeToString(deterministic=True)
    assert [(line.event, line.schema) for line in domain.lines] == [("left", type(reply).__name__)]


@pytest.mark.parametrize("code", sorted(REFUSAL_CODES))
def test_of_a_refusal_only_its_code_leaves(domain: Domain, code: str) -> None:
    def handler(message: Message, context: Context) -> Message:
        raise Refusal(code, f"epsilon of {MARKER} is above the ceiling")

    reply = answer(handler, domain, wire.HELLO)
    assert dict(reply.content["status"]) == {"status": "refused", "code": code, "protocol": 1}
    assert MARKER not in domain.manifest.read_text()


def test_the_same_committed_update_leaves_twice_with_the_same_bytes(domain: Domain) -> None:
    app = app_of(committed_then(lambda content: None, domain), domain)
    assert content_bytes(sent(app)) == content_bytes(sent(app))


# --- content that does not belong ----------------------------------------------------------------------------------------------------


def _array(message: str) -> Array:
    return Array(np.frombuffer(message.encode().ljust(16, b"\0"), dtype=np.float32).copy())


def _set(record: str, key: str, value: Any) -> Callable[[RecordDict], None]:
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
    "an extra array": _set("arrays", "transfer.more", _array("x")),
    "an extra array with a user id in it": _set("arrays", "transfer.more", _array(MARKER)),
    "a user id hidden in an array name": _set("arrays", MARKER, _array("x")),
    "an extra metric": _set("metrics", "loss", 0.25),
    "a user id hidden in a metric name": _set("metrics", MARKER, 1.0),
    "a user id hidden in a field name": _set("fields", MARKER, 1),
    "a user id hidden in a receipt field": _set("receipt", "note", MARKER),
    "a user id hidden in a record name": lambda content: content.update({MARKER: MetricRecord({})}),
    "an extra record": lambda content: content.update({"log": ConfigRecord({"text": MARKER})}),
    "an empty extra record": lambda content: content.update({"log": ConfigRecord({})}),
    "the number of users as weight": _set("metrics", "weight", 4711.0),
    "a weight of minus one": _set("metrics", "weight", -1.0),
    "a weight that is not finite": _set("metrics", "weight", float("nan")),
    "a whole weight": _set("metrics", "weight", 1),
    "a list of weights": _set("metrics", "weight", [1.0, 4711.0]),
    "a user id as run id": _set("fields", "run_id", MARKER + " "),
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
    "a receipt with an unlisted mechanism field": _set("receipt", "mechanism", json.dumps({"kind": ["x"], "user": MARKER})),
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda name: name.replace(" ", "_"))
def test_content_that_does_not_belong_is_stopped(domain: Domain, attack: str) -> None:
    assert_stopped(answer(committed_then(ATTACKS[attack], domain), domain), domain, "malformed")


def test_a_user_id_hidden_in_a_metric_name_is_stopped(domain: Domain) -> None:
    handler = committed_then(_set("metrics", f"accuracy_of_{MARKER}", 0.5), domain)
    assert_stopped(answer(handler, domain), domain, "malformed")


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("head_hash", "d" * 64),
        ("count_of_intents", 5),
        ("mechanism", wire.canonical_json({"kind": "poisson_gaussian", "user": MARKER})),
        ("epsilon_spent", 0.1),
        ("epsilon_spent", float("inf")),
    ],
)
def test_a_receipt_that_says_something_else_than_the_ledger_is_stopped(domain: Domain, field_name: str, value: Any) -> None:
    assert_stopped(answer(committed_then(_set("receipt", field_name, value), domain), domain), domain, "wrong-receipt")


def test_a_receipt_under_another_domains_name_is_stopped(domain: Domain) -> None:
    handler = committed_then(_set("receipt", "domain", MARKER), domain)
    assert_stopped(answer(handler, domain), domain, "wrong-domain")


def test_a_hello_under_another_domains_name_is_stopped(domain: Domain) -> None:
    reply = answer(lambda message, _: Message(wire.HelloReply(domain=MARKER).pack(), reply_to=message), domain, wire.HELLO)
    assert_stopped(reply, domain, "wrong-domain")


@pytest.mark.parametrize("kind", list(_CATALOGUE))
def test_the_catalogue_of_a_partner_who_did_not_agree_stays(domain: Domain, kind: str) -> None:
    domain.shares_catalogue = False
    reply = answer(lambda message, _: Message(_CATALOGUE[kind].pack(), reply_to=message), domain, kind)
    assert_stopped(reply, domain, "not-shared")


@pytest.mark.parametrize("kind", [wire.MOMENTS, wire.CENTROIDS, wire.DESCRIPTOR, wire.DELIVER])
def test_an_update_in_answer_to_another_question_is_stopped(domain: Domain, kind: str) -> None:
    assert_stopped(answer(committed_then(lambda content: None, domain), domain, kind), domain, "malformed")


@pytest.mark.parametrize("kind", [wire.HELLO, wire.TRAIN])
def test_ok_in_answer_to_a_question_that_needs_more_is_stopped(domain: Domain, kind: str) -> None:
    assert_stopped(answer(lambda message, _: Message(wire.Ok().pack(), reply_to=message), domain, kind), domain, "malformed")


# --- the ledger ------------------------------------------------------------------------------------------------------------------------


def _signed(changed: wire.TransferUpdate) -> wire.TransferUpdate:
    return changed.with_receipt(replace(changed.receipt, payload_sha256=changed.digest()))


def test_an_update_without_an_intent_is_stopped(domain: Domain) -> None:
    assert_stopped(answer(lambda message, _: Message(_signed(update()).pack(), reply_to=message), domain), domain, "no-commit")


def test_an_update_with_an_intent_but_no_commit_is_stopped(domain: Domain) -> None:
    def handler(message: Message, context: Context) -> Message:
        domain.intend()
        return Message(_signed(update()).pack(), reply_to=message)

    assert_stopped(answer(handler, domain), domain, "no-commit")


def test_an_update_that_differs_from_the_committed_one_in_one_bit_is_stopped(domain: Domain) -> None:
    def handler(message: Message, context: Context) -> Message:
        domain.commit(update())
        arrays = {name: array.copy() for name, array in update().arrays.items()}
        arrays["transfer.reader"].view(np.uint32)[0, 0] ^= 1
        return Message(_signed(update(arrays=arrays)).pack(), reply_to=message)

    assert_stopped(answer(handler, domain), domain, "wrong-payload")


@pytest.mark.parametrize("changes", [{"round": ROUND - 1}, {"run_id": "run-0"}, {"config_hash": "f" * 64}])
def test_an_update_of_another_round_run_or_configuration_is_stopped(domain: Domain, changes: dict[str, Any]) -> None:
    def handler(message: Message, context: Context) -> Message:
        receipt = domain.commit(update()).receipt
        return Message(update(**changes, receipt=receipt).pack(), reply_to=message)

    assert_stopped(answer(handler, domain), domain, "wrong-round")


def test_a_committed_update_leaves_again_after_the_partner_raised_the_ceiling(domain: Domain) -> None:
    app = app_of(committed_then(lambda content: None, domain), domain)
    first = wire.reply_schema(wire.TRAIN, CONFIG).read(sent(app).content)
    with Ledger.open(domain.ledger) as ledger:
        ledger.raise_ceiling(9.0, raised_by="the partner", why="a longer run")
    second = wire.reply_schema(wire.TRAIN, CONFIG).read(sent(app).content)
    assert isinstance(first, wire.TransferUpdate)
    assert isinstance(second, wire.TransferUpdate)
    assert first.digest() == second.digest()
    assert first.receipt.head_hash == second.receipt.head_hash
    assert [line.ledger_event for line in domain.lines] == [domain.commit_hash] * 2


def test_an_old_receipt_is_stopped_once_more_was_spent(domain: Domain) -> None:
    old = domain.commit(update())
    domain.intend(ROUND + 1)
    assert_stopped(answer(lambda message, _: Message(old.pack(), reply_to=message), domain), domain, "wrong-receipt")


def test_a_ledger_that_was_changed_lets_no_update_out(domain: Domain) -> None:
    def handler(message: Message, context: Context) -> Message:
        reply = Message(domain.commit(update()).pack(), reply_to=message)
        database = sqlite3.connect(domain.ledger)
        database.execute("DROP TRIGGER events_are_never_changed")
        database.execute("UPDATE events SET payload = replace(payload, 'the partner', 'someone') WHERE seq = 1")
        database.commit()
        database.close()
        return reply

    assert_stopped(answer(handler, domain), domain, "exception")


def test_where_there_is_no_ledger_no_handler_is_called(domain: Domain) -> None:
    def handler(message: Message, context: Context) -> Message:
        raise AssertionError("no handler is called")

    domain.ledger.unlink()
    assert_stopped(answer(handler, domain), domain, "exception")


def test_every_attempt_at_a_round_counts(domain: Domain) -> None:
    assert [domain.intend(), domain.intend()] == [1, 2]
    assert round_record(domain.ledger, RUN, ROUND) == RoundRecord(intents=2, committed=None)
    assert round_record(domain.ledger, RUN, ROUND + 1).intents == 0
    assert round_record(domain.ledger, "run-2", ROUND).intents == 0


def test_a_refusal_after_the_intent_is_stopped_because_data_were_open(domain: Domain) -> None:
    def handler(message: Message, context: Context) -> Message:
        domain.intend()
        raise Refusal("ceiling", "decided by what was seen in the data")

    assert_stopped(answer(handler, domain), domain, "late-refusal")


def test_a_refusal_because_the_reserve_of_lost_attempts_is_used_up_leaves(domain: Domain) -> None:
    domain.intend()  # an attempt of an earlier process, lost

    def handler(message: Message, context: Context) -> Message:
        raise Refusal("ceiling", "no attempt is left")

    assert dict(answer(handler, domain).content["status"])["code"] == "ceiling"


def test_without_a_run_configuration_nothing_can_be_checked_and_nothing_leaves(domain: Domain) -> None:
    domain.config = None
    assert_stopped(answer(committed_then(lambda content: None, domain), domain), domain, "malformed")


def test_before_hello_a_reply_of_the_default_shape_is_stopped_too(domain: Domain) -> None:
    domain.config = None
    reply = wire.DescriptorReply(descriptor=np.zeros(RunConfig().model.descriptor_dimension, np.float32))
    stopped = answer(lambda message, _: Message(reply.pack(), reply_to=message), domain, wire.DESCRIPTOR)
    assert_stopped(stopped, domain, "no-configuration")


# --- failures --------------------------------------------------------------------------------------------------------------------------

FAILURES: list[BaseException] = [
    ValueError(f"could not convert string to float: '{MARKER}'"),
    InvalidInteraction(f"row 118: {MARKER}"),
    BudgetExhausted(MARKER, requested=1, remaining=0, ceiling=8, delta=1e-6),
    MemoryError(MARKER),
    RecursionError(MARKER),
    SystemExit(MARKER),
    GeneratorExit(MARKER),
    ImportError(MARKER),
    ExceptionGroup(MARKER, [ValueError(MARKER)]),
    BaseException(MARKER),
    UnicodeDecodeError("utf-8", MARKER.encode(), 0, 1, MARKER),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("kind", [wire.HELLO, wire.TRAIN])
def test_the_text_of_an_exception_never_leaves(domain: Domain, failure: BaseException, kind: str) -> None:
    def handler(message: Message, context: Context) -> Message:
        print(MARKER)
        print(MARKER, file=sys.stderr)
        raise failure

    assert_stopped(answer(handler, domain, kind), domain, "exception")


class Vicious(BaseException):
    """Cannot even be printed."""

    def __str__(self) -> str:
        raise SystemExit(MARKER)

    __repr__ = __str__


class BrokenLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise SystemExit(MARKER)


@pytest.mark.parametrize("log", [logging.StreamHandler(io.StringIO()), BrokenLog()], ids=["a log", "a broken log"])
@pytest.mark.parametrize("failure", [Vicious(), ValueError(MARKER)], ids=["unprintable", "plain"])
def test_an_exception_does_not_get_past_by_way_of_the_log(domain: Domain, failure: BaseException, log: logging.Handler) -> None:
    def handler(message: Message, context: Context) -> Message:
        raise failure

    logger = logging.getLogger("isthmus.egress")
    logger.addHandler(log)
    logger.setLevel(logging.ERROR)
    try:
        assert_stopped(answer(handler, domain), domain, "exception")
        assert content_bytes(sent(Gate(ClientApp(), border=raising(failure)))) == UNAVAILABLE
    finally:
        logger.removeHandler(log)


def raising(failure: BaseException) -> Callable[[Context], Border]:
    def border(context: Context) -> Border:
        raise failure

    return border


def test_a_person_at_the_keyboard_can_still_stop_the_client(domain: Domain) -> None:
    def handler(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(handler, domain)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_text_of_an_exception_in_a_lifespan_never_leaves(domain: Domain, when: str) -> None:
    app = app_of(committed_then(lambda content: None, domain), domain)

    @app.lifespan()
    def lifespan(context: Context) -> Iterator[None]:
        if when == "before":
            raise ValueError(MARKER)
        yield
        raise ValueError(MARKER)

    assert_stopped(sent(app), domain, "exception")


@pytest.mark.parametrize("kind", ["evaluate", "query", "train.more", f"query.{MARKER.replace('-', '_')}"])
def test_an_unknown_kind_of_message_does_not_reach_flowers_error_text(domain: Domain, kind: str) -> None:
    def handler(message: Message, context: Context) -> Message:
        raise AssertionError("no handler is called")

    reply = sent(app_of(handler, domain), content=RecordDict(), kind=kind)
    assert_stopped(reply, domain, "unknown-kind")
    assert {line.kind for line in domain.lines} == {"unknown"}
    assert MARKER.replace("-", "_") not in domain.manifest.read_text()


def test_a_kind_that_has_no_handler_does_not_reach_flowers_error_text(domain: Domain) -> None:
    assert_stopped(sent(Gate(ClientApp(), border=domain.border)), domain, "exception")


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"x": ConfigRecord({"x": 1})}), instruction(wire.HELLO)])
def test_a_malformed_instruction_opens_nothing(domain: Domain, content: RecordDict) -> None:
    def handler(message: Message, context: Context) -> Message:
        raise AssertionError("no handler is called")

    assert_stopped(sent(app_of(handler, domain), content=content), domain, "malformed-instruction")


def test_an_error_message_as_instruction_opens_nothing(domain: Domain) -> None:
    message = received(instruction(), wire.TRAIN)
    broken = Message(Error(code=1, reason=MARKER), reply_to=message)
    reply = app_of(lambda m, _: m, domain)(broken, context())
    assert_stopped(reply, domain, "malformed-instruction")


@pytest.mark.parametrize(
    "made",
    [
        lambda message: None,
        lambda message: MARKER,
        lambda message: RecordDict({MARKER: MetricRecord({})}),
        lambda message: Message(Error(code=7, reason=MARKER), reply_to=message),
    ],
    ids=["nothing", "a text", "a bare content", "flower's own error"],
)
def test_what_is_not_a_reply_is_stopped(domain: Domain, made: Callable[[Message], Any]) -> None:
    assert_stopped(answer(lambda message, _: made(message), domain), domain, "not-a-reply")


def test_unavailable_is_the_same_message_whatever_the_cause(domain: Domain) -> None:
    def of(message: Message) -> tuple[Any, ...]:
        m = message.metadata
        return (
            content_bytes(message),
            m.group_id,
            m.message_type,
            m.src_node_id,
            m.dst_node_id,
            m.reply_to_message_id,
            m.src_task_id,
            m.dst_task_id,
        )

    def fail(failure: BaseException) -> Handler:
        def handler(message: Message, context: Context) -> Message:
            raise failure

        return handler

    handlers = [
        *(fail(f) for f in FAILURES),
        *(committed_then(ATTACKS[name], domain) for name in ATTACKS),
        lambda m, c: Message(wire.Unavailable().pack(), reply_to=m),
    ]
    assert len({of(answer(handler, domain)) for handler in handlers}) == 1


# --- metadata --------------------------------------------------------------------------------------------------------------------------


def test_metadata_that_a_handler_writes_into_its_reply_does_not_leave(domain: Domain) -> None:
    def handler(message: Message, context: Context) -> Message:
        reply = Message(domain.commit(update()).pack(), reply_to=message)
        reply.metadata.group_id = MARKER
        reply.metadata.message_type = "query." + MARKER.replace("-", "_")
        reply.metadata.ttl = 4711.0
        reply.metadata.dst_node_id = 4711
        reply.metadata.src_task_id = 4711
        reply.metadata.__dict__["_reply_to_message_id"] = MARKER
        return reply

    m = answer(handler, domain).metadata
    assert (m.group_id, m.message_type, m.dst_node_id, m.src_task_id, m.reply_to_message_id) == (str(ROUND), "train", 2, None, "")
    assert m.ttl < 600


def test_metadata_that_a_handler_writes_into_its_instruction_does_not_leave(domain: Domain) -> None:
    def handler(message: Message, context: Context) -> Message:
        message.metadata.group_id = MARKER
        message.metadata.message_type = "query.hello"
        message.metadata.ttl = 4711.0
        message.metadata.__dict__["_message_id"] = MARKER
        message.metadata.__dict__["_src_node_id"] = 4711
        return Message(domain.commit(update()).pack(), reply_to=message)

    m = answer(handler, domain).metadata
    assert (m.group_id, m.message_type, m.dst_node_id, m.reply_to_message_id) == (str(ROUND), "train", 2, "")
    assert m.ttl < 600


def test_an_instruction_that_a_handler_rewrites_does_not_move_the_check(domain: Domain) -> None:
    def handler(message: Message, context: Context) -> Message:
        receipt = domain.commit(update()).receipt
        message.content = wire.RoundInstruction(run_id=RUN, round=ROUND - 1, config_hash=CONFIG.config_hash, arrays=update().arrays).pack()
        return Message(update(round=ROUND - 1, receipt=receipt).pack(), reply_to=message)

    assert_stopped(answer(handler, domain), domain, "wrong-round")


def test_the_order_of_names_carries_nothing(domain: Domain) -> None:
    def reverse(content: RecordDict) -> None:
        for name in reversed(list(content)):
            record = content.pop(name)
            turned: Any = dict(reversed(list(record.items())))
            content[name] = type(record)(turned)

    straight = answer(committed_then(lambda content: None, domain), domain)
    turned = answer(committed_then(reverse, domain), domain)
    assert [(name, list(record)) for name, record in straight.content.items()] == [(n, list(r)) for n, r in turned.content.items()]
    assert content_bytes(straight) == content_bytes(turned)


# --- the manifest ----------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_down_does_not_leave(domain: Domain, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    domain.manifest = tmp_path / "file" / "egress.jsonl"
    assert content_bytes(answer(committed_then(lambda content: None, domain), domain)) == UNAVAILABLE


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_context_that_belongs_to_no_domain_gets_the_fixed_reply(failure: BaseException) -> None:
    assert content_bytes(sent(Gate(ClientApp(), border=raising(failure)))) == UNAVAILABLE


def test_the_manifest_goes_on_after_a_line_that_a_crash_cut_short(domain: Domain) -> None:
    app = app_of(committed_then(lambda content: None, domain), domain)
    sent(app)
    with domain.manifest.open("ab") as file:
        file.write(b'{"event": "le')
    sent(app)
    assert [line.event for line in domain.lines] == ["left", "left"]


def test_a_message_has_its_line_before_it_goes(domain: Domain) -> None:
    seen: list[int] = []

    def watching(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        reply = call_next(message, context)
        seen.append(len(domain.lines))
        return reply

    app = ClientApp(mods=[watching, gate_mod(domain.border)])
    app.train()(committed_then(lambda content: None, domain))
    app(received(instruction(), wire.TRAIN), context())
    assert seen == [1]


# --- the places Flower calls it from -----------------------------------------------------------------------------------------------------


def test_as_a_mod_the_gate_stops_the_same_attack(domain: Domain) -> None:
    app = ClientApp(mods=[gate_mod(domain.border)])
    app.train()(committed_then(_set("metrics", MARKER, 1.0), domain))
    assert_stopped(sent(app), domain, "malformed")


def test_as_a_mod_inside_a_gate_it_steps_aside(domain: Domain) -> None:
    app = ClientApp(mods=[gate_mod(domain.border)])
    app.train()(committed_then(lambda content: None, domain))
    sent(Gate(app, border=domain.border))
    assert [line.event for line in domain.lines] == ["left"]
    sent(app)  # and is back on its own
    assert [line.event for line in domain.lines] == ["left", "left"]


_APP = """
from flwr.clientapp import ClientApp
from client.egress import Gate

def nowhere(context):
    raise RuntimeError("no domain")

app = Gate(ClientApp(), border=nowhere)
"""


def test_flowers_own_loader_takes_the_gate_for_an_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_gated_app.py").write_text(_APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    app = get_load_client_app_fn("a_gated_app:app", str(tmp_path), multi_app=False)("", "", "")
    assert isinstance(app, Gate)
    assert content_bytes(sent(app)) == UNAVAILABLE


def test_the_gate_travels_to_a_ray_worker() -> None:
    cloudpickle = pytest.importorskip("ray.cloudpickle")

    def nowhere(context: Context) -> Border:
        raise RuntimeError(MARKER)

    app = cloudpickle.loads(cloudpickle.dumps(Gate(ClientApp(), border=nowhere)))
    assert content_bytes(sent(app)) == UNAVAILABLE


def test_what_a_handler_prints_is_in_no_message(domain: Domain) -> None:
    def handler(message: Message, context: Context) -> Message:
        print(MARKER)
        return Message(domain.commit(update()).pack(), reply_to=message)

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        answer(handler, domain)
    assert printed.getvalue() == MARKER + "\n"
