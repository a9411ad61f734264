"""The egress gate: the only way out of a client.

It stands around the whole Flower app, because Flower sends the text of an exception to the server and raises outside its mods for unknown
messages and lifespans. What a handler answers is read strictly by the schema of its kind, compared with the ledger, and written anew: what
leaves was made by the gate from checked values, content and metadata alike. Everything else, whatever its cause, becomes one fixed reply.
Causes are logged on this machine only; each message that leaves or is stopped has a line in the manifest before it goes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.serde import recorddict_to_proto

from shared import wire
from shared.config import RunConfig
from shared.errors import EgressRefused, IsthmusError, Refusal

from .egress_manifest import Manifest
from .ledger_lookup import RoundRecord

_LOG = logging.getLogger("isthmus.egress")
_INSIDE: ContextVar[bool] = ContextVar("inside_the_gate", default=False)

WHY: Mapping[str, str] = {
    "HelloReply": "a domain's name and the protocol: no data",
    "MomentsReply": "the catalogue is public by this partner's policy",
    "CentroidsReply": "the catalogue is public by this partner's policy",
    "DescriptorReply": "the catalogue is public by this partner's policy",
    "TransferUpdate": "post-processing of the round's private steps; weight and receipt hold no data",
    "Ok": "fixed reply",
    "Declined": "fixed reply",
    "Refused": "a code from a fixed list, decided before any data were opened",
    "Unavailable": "fixed reply, the same bytes for every cause",
}
"""Why each reply may leave, by the name of its record; nothing else may."""

_OF_THE_CATALOGUE = (wire.MomentsReply, wire.CentroidsReply, wire.DescriptorReply)


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """What the gate of one domain compares a reply with.

    Args:
        domain: the partner's own name for it.
        manifest: file of the egress manifest.
        ledger_lookup: (run id, round) -> what the ledger holds about it; `client.ledger_lookup.round_record` on its path.
        ledger_mark: number of the last event in the ledger; `shared.privacy.ledger_file.confirmed` on its path.
        run_config: the configuration that `hello` brought, None before it; asked after the handler ran.
        shares: kinds of query about the public catalogue that the partner agreed to answer.
        text_dimension: length of a text vector.
    """

    domain: str
    manifest: Path
    ledger_lookup: Callable[[str, int], RoundRecord]
    ledger_mark: Callable[[], int]
    run_config: Callable[[], RunConfig | None]
    shares: frozenset[str]
    text_dimension: int = wire.TEXT_DIMENSION


FindBorder = Callable[[Context], Border]


class Blocked(EgressRefused):
    """A reply was stopped. ``reason`` is one of a few fixed codes; the text names parts, never values."""

    def __init__(self, reason: str, what: str) -> None:
        self.reason = reason
        super().__init__(what)


class Gate(ClientApp):
    """A Flower app around another one, through which alone its replies leave.

    Args:
        app: the app with the handlers; ``train``, ``query``, ``evaluate`` and ``lifespan`` register with it.
        border: gives the border of the domain that a context belongs to; called once for each message.
    """

    def __init__(self, app: ClientApp, *, border: FindBorder) -> None:
        super().__init__()
        self._app = app
        self._border = border

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers a message. Nothing but `KeyboardInterrupt` comes out as an exception."""
        return _guard(message, context, self._app, self._border)

    def train(self, action: str = "default", *, mods: list[Mod] | None = None) -> Callable[[ClientAppCallable], ClientAppCallable]:
        return self._app.train(action, mods=mods)

    def evaluate(self, action: str = "default", *, mods: list[Mod] | None = None) -> Callable[[ClientAppCallable], ClientAppCallable]:
        return self._app.evaluate(action, mods=mods)

    def query(self, action: str = "default", *, mods: list[Mod] | None = None) -> Callable[[ClientAppCallable], ClientAppCallable]:
        return self._app.query(action, mods=mods)

    def lifespan(self) -> Callable[[Any], Any]:
        return self._app.lifespan()


def gate_mod(border: FindBorder) -> Mod:
    """The gate as a mod, for an app that somebody might run without the `Gate` around it; inside one it steps aside."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if _INSIDE.get():
            return call_next(message, context)
        return _guard(message, context, call_next, border)

    return mod


def _guard(message: Message, context: Context, call_next: ClientAppCallable, find_border: FindBorder) -> Message:
    # The reply is made before the handler runs, which could write into the metadata it is given, and is `unavailable` until it is better.
    reply = Message(wire.Unavailable().pack(), reply_to=message)
    inside = _INSIDE.set(True)
    try:
        reply.content = _answer(message, context, call_next, find_border)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _log(error)
    finally:
        _INSIDE.reset(inside)
    return reply


def _answer(message: Message, context: Context, call_next: ClientAppCallable, find_border: FindBorder) -> RecordDict:
    kind = message.metadata.message_type if message.metadata.message_type in wire.KINDS else "unknown"
    border = find_border(context)
    manifest = Manifest(border.manifest)
    round_: int | None = None
    try:
        instruction = _read_instruction(kind, message)
        round_ = instruction.round if isinstance(instruction, wire.RoundInstruction) else None
        before = border.ledger_mark() if isinstance(instruction, wire.RoundInstruction) else None
        reply = _read_reply(kind, _call(call_next, message, context), border)
        ledger_event = _check(kind, reply, instruction, border, before)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _log(error)
        manifest.blocked(kind=kind, why=error.reason if isinstance(error, Blocked) else "exception", round=round_)
        reply, ledger_event = wire.Unavailable(), None
    content = reply.pack()
    name = type(reply).__name__
    data = recorddict_to_proto(content).SerializeToString(deterministic=True)
    digest = hashlib.sha256(data).hexdigest()
    manifest.left(kind=kind, why=WHY[name], schema=name, size=len(data), sha256=digest, round=round_, ledger_event=ledger_event)
    return content


def _read_instruction(kind: str, message: Message) -> wire.Record:
    if kind == "unknown":
        raise Blocked("unknown-kind", "the message is of no kind that this version knows")
    if not message.has_content():
        raise Blocked("malformed-instruction", "the message has no content")
    try:
        return wire.read_instruction(kind, message.content)
    except wire.Malformed as error:
        raise Blocked("malformed-instruction", f"{kind}: {error}") from None


def _call(call_next: ClientAppCallable, message: Message, context: Context) -> RecordDict:
    try:
        reply: object = call_next(message, context)
    except Refusal as refusal:
        _log(refusal)
        return wire.Refused(refusal.code).pack()
    if not isinstance(reply, Message) or not reply.has_content() or not isinstance(reply.content, RecordDict):
        raise Blocked("not-a-reply", "a handler returned no message, or one without content")
    return reply.content


def _read_reply(kind: str, content: RecordDict, border: Border) -> wire.Reply:
    config = border.run_config()
    try:
        reply = wire.reply_schema(kind, config or RunConfig(), border.text_dimension).read(content)
    except wire.Malformed as error:
        raise Blocked("malformed", f"{kind}: {error}") from None
    if config is None and not isinstance(reply, (wire.HelloReply, wire.Status, wire.Refused)):
        raise Blocked("no-configuration", f"{kind}: this domain holds no run configuration to check the reply with")
    return reply


def _check(kind: str, reply: wire.Reply, instruction: wire.Record, border: Border, before: int | None) -> str | None:
    """Holds a well-formed reply against domain, consent and ledger; returns the hash of the ledger event it belongs to."""
    if isinstance(reply, wire.HelloReply) and reply.domain != border.domain:
        raise Blocked("wrong-domain", "'domain' is not the name of this domain")
    if isinstance(reply, _OF_THE_CATALOGUE) and kind not in border.shares:
        raise Blocked("not-shared", "the partner did not agree to send this")
    if isinstance(instruction, wire.RoundInstruction) and before is not None and isinstance(reply, (wire.Refused, wire.TransferUpdate)):
        after = border.ledger_lookup(instruction.run_id, instruction.round)
        if isinstance(reply, wire.Refused) and after.last_intent > before:  # a mark that a crash left behind stops more, never less
            raise Blocked("late-refusal", "after an intent there is only the update, or nothing")
        if isinstance(reply, wire.TransferUpdate):
            return _check_update(reply, instruction, border, after)
    return None


def _check_update(update: wire.TransferUpdate, instruction: wire.RoundInstruction, border: Border, record: RoundRecord) -> str:
    if (update.run_id, update.round, update.config_hash) != (instruction.run_id, instruction.round, instruction.config_hash):
        raise Blocked("wrong-round", "the update answers another instruction")
    committed, receipt, digest = record.committed, update.receipt, update.digest()
    if committed is None:
        raise Blocked("no-commit", "the ledger holds no intent and commit for the update")
    if not committed.payload_sha256 == receipt.payload_sha256 == digest:
        raise Blocked("wrong-payload", "the update is not what the ledger committed")
    if receipt.domain != border.domain:
        raise Blocked("wrong-domain", "'receipt.domain' is not the name of this domain")
    for name in ("head_hash", "count_of_intents", "mechanism", "epsilon_spent", "verify_key"):
        if getattr(receipt, name) != getattr(committed, name):
            raise Blocked("wrong-receipt", f"'receipt.{name}' is not what the ledger says")
    if not receipt.holds():
        raise Blocked("wrong-receipt", "'receipt.signature' is not one of this ledger's key over the receipt")
    return committed.head_hash


def _log(error: BaseException) -> None:
    """For this machine only. Our own errors explain themselves; of others one wants to know where they come from."""
    expected = isinstance(error, IsthmusError)
    try:
        said = f"{type(error).__name__}: {error}" if expected else type(error).__name__
        _LOG.error("a reply was withheld: %s", said, exc_info=None if expected else error, extra={"cause": error})
    except KeyboardInterrupt:
        raise
    except BaseException:  # not even a broken log gets past
        return
