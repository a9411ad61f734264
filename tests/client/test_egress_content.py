"""What may pass the gate, and what in a reply may not: each test is a slip or an attack, and nothing of it is in what left."""

from __future__ import annotations

import sqlite3
import stat
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.common.serde import recorddict_to_proto

from client.egress import WHY
from client.ledger_lookup import RoundRecord, round_record
from shared import wire
from shared.config import PROTOCOL, RunConfig
from shared.errors import REFUSAL_CODES, Refusal
from shared.privacy.ledger import Ledger
from shared.privacy.signing import SigningPair
from tests.client.gated_domain import (
    ATTACKS,
    CONFIG,
    MARKER,
    ROUND,
    RUN,
    Domain,
    answer,
    app_of,
    assert_stopped,
    committed_then,
    content_bytes,
    nothing,
    sent,
    set_value,
    update,
)
from tests.shared.privacy.bookshop import KEYS

pytestmark = pytest.mark.usefixtures("flower_process")

# --- what may leave ----------------------------------------------------------------------------------------------------------------


def test_a_committed_update_leaves_and_the_manifest_says_so(domain: Domain) -> None:
    reply = answer(committed_then(nothing, domain), domain)
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
    assert dict(reply.content["status"]) == {"status": "refused", "code": code, "protocol": PROTOCOL}
    assert MARKER not in domain.manifest.read_text()


def test_the_same_committed_update_leaves_twice_with_the_same_bytes(domain: Domain) -> None:
    app = app_of(committed_then(nothing, domain), domain)
    assert content_bytes(sent(app)) == content_bytes(sent(app))


# --- content that does not belong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda name: name.replace(" ", "_"))
def test_content_that_does_not_belong_is_stopped(domain: Domain, attack: str) -> None:
    assert_stopped(answer(committed_then(ATTACKS[attack], domain), domain), domain, "malformed")


def test_a_user_id_hidden_in_a_metric_name_is_stopped(domain: Domain) -> None:
    handler = committed_then(set_value("metrics", f"accuracy_of_{MARKER}", 0.5), domain)
    assert_stopped(answer(handler, domain), domain, "malformed")


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("head_hash", "d" * 64),
        ("count_of_intents", 5),
        ("mechanism", wire.canonical_json({"kind": "poisson_gaussian", "user": MARKER})),
        ("epsilon_spent", 0.1),
        ("epsilon_spent", float("inf")),
        ("verify_key", SigningPair(b"s" * 32).verify_key),
        ("signature", KEYS.sign(b"something else").hex()),
    ],
)
def test_a_receipt_that_says_something_else_than_the_ledger_is_stopped(domain: Domain, field_name: str, value: Any) -> None:
    assert_stopped(answer(committed_then(set_value("receipt", field_name, value), domain), domain), domain, "wrong-receipt")


def test_a_receipt_that_a_stranger_signed_is_stopped(domain: Domain) -> None:
    def handler(message: Message, context: Context) -> Message:
        sent = domain.commit(update())
        said = sent.receipt.to_record() | {"epsilon_spent": sent.receipt.epsilon_spent}
        del said["verify_key"], said["signature"]
        return Message(sent.with_receipt(wire.Receipt.signed(SigningPair(b"s" * 32), **said)).pack(), reply_to=message)

    assert_stopped(answer(handler, domain), domain, "wrong-receipt")


def test_a_receipt_under_another_domains_name_is_stopped(domain: Domain) -> None:
    handler = committed_then(set_value("receipt", "domain", MARKER), domain)
    assert_stopped(answer(handler, domain), domain, "wrong-domain")


def test_a_hello_under_another_domains_name_is_stopped(domain: Domain) -> None:
    reply = answer(lambda message, _: Message(wire.HelloReply(domain=MARKER).pack(), reply_to=message), domain, wire.HELLO)
    assert_stopped(reply, domain, "wrong-domain")


@pytest.mark.parametrize("kind", list(_CATALOGUE))
def test_the_catalogue_of_a_partner_who_did_not_agree_stays(domain: Domain, kind: str) -> None:
    domain.shares = frozenset()
    reply = answer(lambda message, _: Message(_CATALOGUE[kind].pack(), reply_to=message), domain, kind)
    assert_stopped(reply, domain, "not-shared")


@pytest.mark.parametrize("kind", [wire.MOMENTS, wire.CENTROIDS, wire.DESCRIPTOR, wire.DELIVER])
def test_an_update_in_answer_to_another_question_is_stopped(domain: Domain, kind: str) -> None:
    assert_stopped(answer(committed_then(nothing, domain), domain, kind), domain, "malformed")


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
    app = app_of(committed_then(nothing, domain), domain)
    first = wire.reply_schema(wire.TRAIN, CONFIG).read(sent(app).content)
    with Ledger.open(domain.ledger, signer=KEYS) as ledger:
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
    assert_stopped(answer(committed_then(nothing, domain), domain), domain, "malformed")


def test_before_hello_a_reply_of_the_default_shape_is_stopped_too(domain: Domain) -> None:
    domain.config = None
    reply = wire.DescriptorReply(descriptor=np.zeros(RunConfig().model.descriptor_dimension, np.float32))
    stopped = answer(lambda message, _: Message(reply.pack(), reply_to=message), domain, wire.DESCRIPTOR)
    assert_stopped(stopped, domain, "no-configuration")
