"""What the ledger says about one round: for the gate, and for a reply that is sent again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shared.privacy.ledger import Ledger
from shared.privacy.ledger_schema import Event
from shared.wire import canonical_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What the ledger says about a committed round; a receipt has to say the same.

    Args:
        payload_sha256: digest of the update.
        head_hash: hash of the commit, the head of the chain right after it.
        count_of_intents: intents in the ledger up to the commit.
        mechanism: `shared.wire.canonical_json` of the round's mechanism record.
        epsilon_spent: what the whole ledger adds up to.
    """

    payload_sha256: str
    head_hash: str
    count_of_intents: int
    mechanism: str
    epsilon_spent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """A round in the ledger: its attempts, the number of the event that was the last of them, and its commit if there is one."""

    intents: int
    committed: Committed | None
    last_intent: int = field(default=0, compare=False)


def round_record(path: Path, run_id: str, round: int) -> RoundRecord:
    """Reads a ledger beside its writer.

    Raises:
        LedgerBroken: the chain or the schema do not hold.
    """
    with Ledger.open(path, read_only=True) as ledger:
        return find_round(ledger, run_id, round)


def find_round(ledger: Ledger, run_id: str, round: int) -> RoundRecord:
    """Attempts at a round, and its commit with the head of the chain and the count of intents right after it."""
    all_intents = attempts = count = last = 0
    commit: Event | None = None
    mechanism = ""
    for event in ledger.events():
        mine = event.payload.get("run_id") == run_id and event.payload.get("round") == round
        if event.kind == "intent":
            all_intents += 1
            if mine:
                attempts, last = attempts + 1, event.seq
                mechanism = canonical_json(event.payload["mechanism"])
        elif event.kind == "commit" and mine:
            commit, count = event, all_intents
    if commit is None:
        return RoundRecord(intents=attempts, committed=None, last_intent=last)
    committed = Committed(
        payload_sha256=commit.payload["payload_sha256"],
        head_hash=commit.hash,
        count_of_intents=count,
        mechanism=mechanism,
        epsilon_spent=ledger.epsilon_spent(),
    )
    return RoundRecord(intents=attempts, committed=committed, last_intent=last)
