"""The life of a domain's ledger at its partner: made once, looked at, handed over, its ceiling raised, brought to a newer format.

How it begins again after a loss is in `ledger_restart`, how its keys change in `key_rotation`.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import LedgerBroken, LedgerError, UsageError
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_schema import FORMAT, LONGEST_TEXT, UNSIGNED_FORMAT, Event

from .durable_files import storage_errors
from .key_rotation import own_keys
from .keys import PublicKeys
from .ledger_loss import RESTART, why_lost
from .settings import ClientSettings

MEANS_RAISED = (
    "A raised ceiling cannot be lowered again. From here on every report of this domain says WITHIN RAISED BUDGET and shows the ceiling it "
    "began with beside the new one. From here on the Renyi filter decides, because what is permitted was changed after outputs were seen: "
    "it counts what was spent higher than before, so that the room that is gained is less than the difference of the two ceilings. The "
    "coordinator drops this domain's replies where they show more than the ceiling it agreed on with you."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the ledger says about one run.

    Attributes:
        attempts: intents, each of them spent.
        permitted: intents that its plan allows, reserve included; cut down where the run was ended.
        committed: rounds whose bytes left.
    """

    run_id: str
    rounds: int
    reserve: int
    permitted: int
    attempts: int = 0
    committed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What a ledger says, for its owner's eyes.

    Attributes:
        ceiling: epsilon that the whole life may cost, now; ``first_ceiling`` is that of genesis.
        booked: epsilon that counts as spent because an earlier ledger was lost.
        spent: epsilon of every intent and release; ``reserved``: with everything that admitted runs may still spend.
        remaining: of the ceiling, above what is reserved. A guide only: epsilons of one ledger do not simply add up.
        claimed_delta: of the statement about the whole life.
        decided_by: ``pld`` while the life is one schedule, ``rdp-filter`` afterwards.
        events: how many, by kind.
        keys: (number of the event that named it, public key in hex), the last one in force; empty in format 1.
        audits: the last audit of each tier.
    """

    domain: str
    path: Path
    format: int
    private: bool
    ceiling: float
    first_ceiling: float
    booked: float
    spent: float
    reserved: float
    delta: float
    claimed_delta: float
    decided_by: str
    intents: int
    head_hash: str
    last_event: str
    runs: tuple[Run, ...]
    events: dict[str, int]
    keys: tuple[tuple[int, str], ...]
    audits: tuple[Event, ...]

    @property
    def remaining(self) -> float:
        return max(0.0, self.ceiling - self.reserved)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """The three files of a hand-over, and what the ledger's signed head says."""

    ledger: Path
    keys: Path
    words: Path
    head_seq: int
    head_hash: str


def create(settings: ClientSettings) -> PublicKeys:
    """Makes this domain's keys, where there are none, and its ledger, from the ceiling in the settings.

    Raises:
        LedgerError: there is a ledger.
        LedgerBroken: there was one, and it is lost.
    """
    path = settings.ledger_path
    if path.exists():
        do = (
            "A domain has one ledger for life: see it with isthmus-client ledger show. Its ceiling is changed by ledger raise-ceiling only."
        )
        raise LedgerError(f"there is a ledger already: {path}", do=do)
    if lost := why_lost(settings):
        raise LedgerBroken(lost, do=RESTART)
    keys = own_keys(settings)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ceiling = settings.ceiling
    Ledger.create(
        path, signer=keys, domain=settings.domain, ceiling_epsilon=ceiling.epsilon, delta=ceiling.delta, set_by=ceiling.set_by
    ).close()
    return keys.public(settings.domain)


def overview(settings: ClientSettings) -> Overview:
    """Reads a ledger beside any writer.

    Raises:
        LedgerError: there is none, or it cannot be used.
    """
    path = settings.ledger_path
    with Ledger.open(path, read_only=True) as ledger:
        seen = _Seen()
        for event in ledger.events():
            seen.add(event)
        return Overview(
            domain=ledger.domain,
            path=path,
            format=FORMAT if seen.keys else UNSIGNED_FORMAT,
            private=ledger.private,
            ceiling=ledger.ceiling_epsilon,
            first_ceiling=seen.first_ceiling,
            booked=ledger.booked_epsilon,
            spent=ledger.epsilon_spent(),
            reserved=ledger.epsilon_reserved(),
            delta=ledger.delta,
            claimed_delta=ledger.claimed_delta,
            decided_by="rdp-filter" if ledger.adaptive else "pld",
            intents=ledger.count_of_intents,
            head_hash=ledger.head_hash,
            last_event=seen.last,
            runs=tuple(Run(run_id=name, **run) for name, run in seen.runs.items()),
            events=dict(seen.counts),
            keys=tuple(seen.keys),
            audits=tuple(seen.audits[tier] for tier in sorted(seen.audits)),
        )


@dataclass(slots=True)
class _Seen:
    """What one reading of all events finds."""

    first_ceiling: float = 0.0
    last: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    runs: dict[str, dict[str, int]] = field(default_factory=dict)
    keys: list[tuple[int, str]] = field(default_factory=list)
    audits: dict[int, Event] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        said, self.last = event.payload, event.time_utc
        self.counts[event.kind] += 1
        if event.kind == "genesis":
            self.first_ceiling = float.fromhex(said["ceiling_epsilon"])
        elif event.kind == "schedule":
            run = self.runs.setdefault(said["run_id"], {"attempts": 0, "committed": 0})
            run.update(rounds=said["rounds"], reserve=said["reserve"], permitted=said["permitted_intents"])
        elif event.kind in ("intent", "commit"):
            self.runs[said["run_id"]]["attempts" if event.kind == "intent" else "committed"] += 1
        elif event.kind == "audit":
            self.audits[said["tier"]] = event
        if key := said.get("new_verify_key") or said.get("verify_key"):
            self.keys.append((event.seq, key))


def export(settings: ClientSettings, to: Path) -> HandedOver:
    """Hands the ledger over: one file with a signed head, beside it the public keys and a text that says what to do with both.

    Nothing is overwritten; the text and the keys may be there from an attempt that was cut off. The ledger comes last, complete or not at
    all.

    Raises:
        UsageError: a file of this name is there already.
        LedgerLocked: a process is writing to the ledger.
    """
    from shared.privacy.ledger_handover import hand_over

    keys, to = own_keys(settings), to.absolute()
    public = keys.public(settings.domain)
    beside, words = to.with_name(f"{to.stem}.keys.json"), to.with_name(f"{to.stem}.txt")
    files = {beside: public.to_json().encode(), words: _what_to_do(public, to.name, beside.name).encode()}
    if to.exists():
        raise UsageError(f"{to} exists already, and a hand-over never replaces a file", do="Name another file with --out.")
    for path, data in files.items():
        if path.exists() and path.read_bytes() != data:
            raise UsageError(f"{path} exists already and says something else", do="Name another file with --out, or move that one away.")
    made = [path for path in files if not path.exists()]
    try:
        for path in made:
            _publish(path, files[path])
        head = hand_over(settings.ledger_path, to, signer=keys)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    return HandedOver(ledger=to, keys=beside, words=words, head_seq=head.seq, head_hash=head.hash)


def raise_ceiling(settings: ClientSettings, epsilon: float, *, by: str, why: str) -> None:
    """Permits more; see `MEANS_RAISED`.

    Raises:
        UsageError: a name or a reason is missing, or cannot be written down.
        LedgerError: it is not above the ceiling there is.
    """
    check_words(by=by, why=why)
    with Ledger.open(settings.ledger_path, signer=own_keys(settings)) as ledger:
        check_above(ledger.ceiling_epsilon, epsilon)
        ledger.raise_ceiling(epsilon, raised_by=by, why=why)


def upgrade(settings: ClientSettings, *, why: str) -> bool:
    """Brings a ledger of an older format to this one; from there on it is signed. Whether there was anything to do.

    Raises:
        LedgerBroken: it does not hold as it is.
    """
    check_words(why=why)
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        if ledger.verify_key is not None:
            return False
    Ledger.upgrade(settings.ledger_path, signer=own_keys(settings), why=why)
    return True


def check_above(ceiling: float, epsilon: float) -> None:
    """Refuses a new ceiling that permits no more than the old one. Raises LedgerError."""
    if not ceiling < epsilon < math.inf:
        do = "A ceiling can only be raised, to a finite epsilon."
        raise LedgerError(f"the new ceiling {epsilon:g} is not above the ceiling {ceiling:g} of this ledger", do=do)


def check_words(**words: str) -> None:
    """Refuses a name or a reason that a ledger cannot hold. Raises UsageError."""
    for name, text in words.items():
        if not text.strip():
            raise UsageError(f"--{name} is empty", do="Reports show who decided, and why: say so in a few words.")
        if len(text) > LONGEST_TEXT or not all(c.isprintable() or c == "\n" for c in text):
            raise UsageError(f"--{name} is longer than {LONGEST_TEXT} characters, or holds some that cannot be printed")


def _publish(path: Path, data: bytes) -> None:
    """Writes a file that does not exist: whole or not at all, readable by its owner only."""
    with storage_errors(f"'{path.name}'"):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(name, path)
        finally:
            os.unlink(name)


def _what_to_do(public: PublicKeys, ledger: str, keys: str) -> str:
    return f"""The privacy ledger of the domain '{public.partner}': what it promised, and everything it spent of that promise.

  {ledger}   the ledger, in one file, its last event signed
  {keys}   the public keys; fingerprint {public.fingerprint}

Compare the fingerprint with the domain's owner over a channel that you both trust: whoever can exchange both files could otherwise
exchange the key as well. Then check the ledger on any machine that has isthmus; nothing of the owner is needed for it:

  isthmus-audit verify {ledger} --key {keys}
  isthmus-audit recompute {ledger}
  isthmus-audit report {ledger} --key {keys} --out report.html

The file alone shows that nothing in it was changed. That nothing is missing at its end is shown by the receipts that the coordinator
keeps (--receipts receipts.json), and what left the domain by the owner's egress manifest (--manifest egress.jsonl). Ask for both.
"""
