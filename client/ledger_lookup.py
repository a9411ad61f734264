"""What the ledger says about one round, and about a receipt: for the gate, for a reply that is sent again, and before a round begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import AuditError, ForeignReceipts, RolledBack
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_schema import Event, canonical
from shared.privacy.receipts import SignedReceipt
from shared.privacy.signing import Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What the ledger says about a committed round; a receipt has to say the same.

    Args:
        payload_sha256: digest of the update.
        head_hash: hash of the commit, the head of the chain right after it.
        count_of_intents: intents in the ledger's life up to the commit.
        mechanism: canonical JSON of the round's mechanism record.
        epsilon_spent: what the whole ledger adds up to.
        verify_key: the key in force, which signs the receipt.
    """

    payload_sha256: str
    head_hash: str
    count_of_intents: int
    mechanism: str
    epsilon_spent: float
    verify_key: str

    def receipt(self, domain: str, signer: Signer) -> SignedReceipt:
        """The signed receipt of the round."""
        return SignedReceipt.signed(
            signer,
            domain=domain,
            count_of_intents=self.count_of_intents,
            head_hash=self.head_hash,
            payload_sha256=self.payload_sha256,
            mechanism=self.mechanism,
            epsilon_spent=self.epsilon_spent,
        )


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
    """Attempts at a round, and its commit with the head of the chain and the count of intents right after it.

    Opening the ledger checked all of it; here it is read from its end, back to the last attempt or to the admission of the run.
    """
    since = 0  # intents after the commit
    commit: Event | None = None
    for event in ledger.newest_first():
        said = event.payload
        mine = said.get("run_id") == run_id
        if event.kind == "commit" and mine and said["round"] == round:
            commit = event
        elif event.kind == "intent" and mine and said["round"] == round:
            found = None if commit is None else _committed(ledger, commit, canonical(said["mechanism"]), ledger.count_of_intents - since)
            return RoundRecord(intents=said["attempt"], committed=found, last_intent=event.seq)
        elif event.kind == "schedule" and mine and said["permitted_intents"] == said["rounds"] + said["reserve"]:
            break
        since += event.kind == "intent" and commit is None
    return RoundRecord(intents=0, committed=None)


def _committed(ledger: Ledger, commit: Event, mechanism: str, count: int) -> Committed:
    return Committed(
        payload_sha256=commit.payload["payload_sha256"],
        head_hash=commit.hash,
        count_of_intents=count,
        mechanism=mechanism,
        epsilon_spent=ledger.epsilon_spent(),
        verify_key=ledger.verify_key or "",
    )


def check_last_receipt(ledger: Ledger, text: str) -> None:
    """Compares the ledger with the last receipt that the coordinator holds; before a round, so that nothing is trained on an old copy.

    Args:
        text: `SignedReceipt.to_json`, or empty where the coordinator holds none.
    Raises:
        RolledBack: this partner signed the receipt, and its ledger does not hold the commit that it names.
        ForeignReceipts: it is not a receipt of this partner.
    """
    if not text:
        return
    try:
        receipt = SignedReceipt.from_json(text)
    except AuditError:
        raise _foreign("it cannot be read") from None
    if receipt.domain != ledger.domain or not receipt.holds():
        raise _foreign("it speaks for another domain, or its signature does not hold")
    keys = {ledger.verify_key}
    held = False
    since = 0  # intents after the event
    for event in ledger.newest_first():
        said = event.payload
        same = event.kind == "commit" and said["payload_sha256"] == receipt.payload_sha256
        held |= event.hash == receipt.head_hash and same and ledger.count_of_intents - since == receipt.count_of_intents
        if (held and receipt.verify_key in keys) or (event.kind == "genesis" and said["last_receipt"] == text):
            return  # it is there, or it belonged to the lost ledger that this one follows
        since += event.kind == "intent"
        keys.add(said["old_verify_key"] if event.kind == "key" else None)
    if receipt.verify_key not in keys:
        raise _foreign("no key of this ledger signed it")
    raise RolledBack(
        f"the coordinator holds a receipt of intent {receipt.count_of_intents} of domain '{ledger.domain}', "
        f"and this ledger, which counts {ledger.count_of_intents}, does not hold that event: it is an older copy",
        do="Put the newest ledger back. If it is lost: isthmus-client ledger restart, with the coordinator's receipt.",
    )


def _foreign(why: str) -> ForeignReceipts:
    return ForeignReceipts(
        f"the coordinator sent a receipt that is not this partner's: {why}", do="Ask the coordinator which receipts it keeps."
    )
