"""A partner's app that answers badly on demand. It is not imported here: it is written into a bundle, as ``client/bad_answers.py``.

It stands outside of the gate, as the code of a partner who changed it would: what it sends reaches the coordinator as it is. What it does
with a message stands in ``home/faults.json`` of the partner: message -> list of faults, the first of them for the first time that the
message comes. ``faults.log`` beside it has a line for each that was committed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from client.settings import ClientSettings
from shared import wire
from shared.privacy.receipts import SignedReceipt

HONEST = ""
_LAST = "last_answer.bin"


class Switch(ClientApp):
    """The app of a bundle, with whatever ``faults.json`` asks for."""

    def __init__(self, app: Callable[[Message, Context], Message]) -> None:
        super().__init__()
        self._app = app

    def __call__(self, message: Message, context: Context) -> Message:
        settings = ClientSettings.read(Path(str(context.node_config["partner-toml"])))
        fault = _next_fault(settings.at_home("faults.json"), message)
        if fault.startswith("named "):
            return Message(wire.HelloReply(domain=fault.removeprefix("named ")).pack(), reply_to=message)
        before = BEFORE.get(fault)
        if before is not None:
            before(message)
        answer = self._app(message, context)
        if fault == "late":
            time.sleep(message.metadata.ttl + 5.0)
        if message.metadata.message_type == wire.TRAIN and "receipt" in answer.content:
            last, path = recorddict_to_proto(answer.content).SerializeToString(), settings.at_home(_LAST)
            content = AFTER[fault](answer.content, settings) if fault in AFTER else answer.content
            path.write_bytes(last)
            return Message(content, reply_to=message)
        return answer


def _next_fault(path: Path, message: Message) -> str:
    """What to do with a message: `HONEST` beyond the list. Messages of one node come one after the other."""
    kind = message.metadata.message_type
    name = f"{kind}/{wire.RoundInstruction.unpack(message.content).round}" if kind == wire.TRAIN else kind
    if not path.is_file():
        return HONEST
    asked: dict[str, list[str]] = json.loads(path.read_text())
    faults = asked.get(name, [])
    if not faults:
        return HONEST
    path.write_text(json.dumps({**asked, name: faults[1:]}))
    with path.with_name("faults.log").open("a") as log:
        log.write(f"{name} {faults[0] or 'honest'}\n")
    return faults[0]


def _never(message: Message) -> None:
    """Hangs, and swallows what the deadline throws."""
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(3600.0)


def _unwatched(message: Message) -> None:
    """Takes the deadline away, as an app could that means ill."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


def _lost(message: Message) -> None:
    """Breaks off after the intent."""
    from client.training import local_round

    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("the power went out")

    local_round.train = breaks


def _twice(message: Message) -> None:
    """Has the app's process send a second and different answer to the same message."""
    module: Any = sys.modules["flwr.supernode.runtime.run_clientapp"]
    send = module.push_message

    def both(client: Any, answer: Message, context: Context) -> None:
        send(client, answer, context)
        send(client, answer, context)  # and the first one once more
        with contextlib.suppress(Exception):  # the node may say that it has one
            send(client, Message(wire.Unavailable().pack(), reply_to=message), context)

    module.push_message = both


BEFORE: dict[str, Callable[[Message], None]] = {"never": _never, "late": _unwatched, "lost": _lost, "twice": _twice}


def _array(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[RecordDict, ClientSettings], RecordDict]:
    def changed(content: RecordDict, settings: ClientSettings) -> RecordDict:
        record = content.array_records[wire.ARRAYS_KEY]
        name = min(record)
        record[name] = Array(change(record[name].numpy()))
        return content

    return changed


def _again(content: RecordDict, settings: ClientSettings) -> RecordDict:
    """The answer to the round before."""
    return recorddict_from_proto(ProtoRecordDict.FromString(settings.at_home(_LAST).read_bytes()))


def _receipt(*own: str) -> Callable[[RecordDict, ClientSettings], RecordDict]:
    """Somebody else's receipt, with some fields of the own one."""

    def changed(content: RecordDict, settings: ClientSettings) -> RecordDict:
        update = wire.TransferUpdate.unpack(content)
        others = SignedReceipt.from_json(settings.at_home("receipt_of_another.json").read_text())
        mixed = dataclasses.replace(others, **{name: getattr(update.receipt, name) for name in own})
        return update.with_receipt(mixed).pack()

    return changed


AFTER: dict[str, Callable[[RecordDict, ClientSettings], RecordDict]] = {
    "nan": _array(lambda array: np.full_like(array, np.nan)),
    "shape": _array(lambda array: np.zeros((1, 1), dtype=array.dtype)),
    "again": _again,
    "receipt": _receipt(),
    "receipt for these arrays": _receipt("payload_sha256"),
    "receipt in the own name": _receipt("payload_sha256", "domain"),
}
