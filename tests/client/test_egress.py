"""The gate as a whole: failures, metadata, manifest, and the places that Flower calls it from."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.utils import get_load_client_app_fn
from ray import cloudpickle

from client.egress import Border, Gate, gate_mod
from shared import wire
from shared.errors import BudgetExhausted, InvalidInteraction
from tests.client.gated_domain import (
    ATTACKS,
    CONFIG,
    MARKER,
    ROUND,
    RUN,
    UNAVAILABLE,
    Domain,
    Handler,
    answer,
    app_of,
    assert_stopped,
    committed_then,
    content_bytes,
    context,
    instruction,
    nothing,
    received,
    sent,
    set_value,
    update,
)

pytestmark = pytest.mark.usefixtures("flower_process")

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
    app = app_of(committed_then(nothing, domain), domain)

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

    straight = answer(committed_then(nothing, domain), domain)
    turned = answer(committed_then(reverse, domain), domain)
    assert [(name, list(record)) for name, record in straight.content.items()] == [(n, list(r)) for n, r in turned.content.items()]
    assert content_bytes(straight) == content_bytes(turned)


# --- the manifest ----------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_down_does_not_leave(domain: Domain, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    domain.manifest = tmp_path / "file" / "egress.jsonl"
    assert content_bytes(answer(committed_then(nothing, domain), domain)) == UNAVAILABLE


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_context_that_belongs_to_no_domain_gets_the_fixed_reply(failure: BaseException) -> None:
    assert content_bytes(sent(Gate(ClientApp(), border=raising(failure)))) == UNAVAILABLE


def test_the_manifest_goes_on_after_a_line_that_a_crash_cut_short(domain: Domain) -> None:
    app = app_of(committed_then(nothing, domain), domain)
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
    app.train()(committed_then(nothing, domain))
    app(received(instruction(), wire.TRAIN), context())
    assert seen == [1]


# --- the places Flower calls it from -----------------------------------------------------------------------------------------------------


def test_as_a_mod_the_gate_stops_the_same_attack(domain: Domain) -> None:
    app = ClientApp(mods=[gate_mod(domain.border)])
    app.train()(committed_then(set_value("metrics", MARKER, 1.0), domain))
    assert_stopped(sent(app), domain, "malformed")


def test_as_a_mod_inside_a_gate_it_steps_aside(domain: Domain) -> None:
    app = ClientApp(mods=[gate_mod(domain.border)])
    app.train()(committed_then(nothing, domain))
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
