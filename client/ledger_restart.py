"""A ledger that is lost: the domain begins again, and the whole ceiling of the lost one counts as spent.

What a lost ledger had spent, nobody can prove; that it never passed its ceiling, it had promised. So the new one books all of that, cites
the last receipt that the coordinator holds, and needs a ceiling above it. Nothing of the old files is deleted: they are moved aside to
``NAME.lost-1`` (the database), ``NAME.lost-1-wal``, ``NAME.lost-1-shm`` and ``NAME.lost-1.lock`` (the mark of what was confirmed), in this
order. Cut off between any two of these steps, there is no ledger, and the same command goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import LedgerBroken, LedgerError, LedgerLocked, NewerLedger, UnknownEvent, UsageError, WrongKey
from shared.privacy.ledger import Ledger

from .durable_files import storage_errors
from .key_rotation import one_at_a_time, own_keys
from .keys import Keys
from .ledger_life import check_words
from .ledger_lookup import check_last_receipt
from .ledger_loss import remains_of
from .settings import ClientSettings

if TYPE_CHECKING:
    from shared.privacy.receipts import SignedReceipt

_PARTS = ("", "-wal", "-shm", ".lock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """How a domain began again.

    Attributes:
        lost: why the old ledger counts as lost.
        aside: where its remains are; empty where there was nothing left.
        booked: epsilon and delta that count as spent.
        known_key: whether the receipt was signed with the key that signs the new ledger.
    """

    lost: str
    aside: tuple[Path, ...]
    booked_epsilon: float
    booked_delta: float
    ceiling_epsilon: float
    claimed_delta: float
    intents: int
    verify_key: str
    known_key: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Old:
    """What can still be known of a lost ledger: why it is lost; ceiling and delta where they can be read."""

    why: str
    ceiling: float | None = None
    delta: float | None = None


def restart(
    settings: ClientSettings, receipt: SignedReceipt | None, *, booked_epsilon: float | None, epsilon: float, by: str, why: str
) -> Restarted:
    """Moves what is left of a lost ledger aside, and begins a new one that books the lost one's whole ceiling.

    Args:
        receipt: the last one that the coordinator holds of this domain; None where it holds none.
        booked_epsilon: the ceiling of the lost ledger; None where its remains can still say it.
        epsilon: the new ceiling, with what is booked.
        by, why: who decided, and the reason; both stand in the new genesis.
    Raises:
        LedgerError: the ledger is intact and holds what the receipt confirms; or the numbers would book too little.
        ForeignReceipts: the receipt is not signed with a key of this ledger, which is intact.
        LedgerLocked: a process has the ledger open.
        UsageError: the lost ceiling is not known.
    """
    set_by = f"{by}: {why}"
    check_words(by=by, why=why)
    check_words(why=set_by)
    path = Path(os.path.realpath(settings.ledger_path))
    keys = own_keys(settings)
    with one_at_a_time(settings):
        old = _lost(path, keys, receipt)
        booked, delta = _booked(settings, old, receipt, booked_epsilon)
        if not booked < epsilon:
            do = "The new ceiling is for the whole life: what is booked, and what may be spent on top of it."
            raise LedgerError(f"the new ceiling {epsilon:g} is not above the {booked:g} that count as spent", do=do)
        with storage_errors("the remains of the old ledger"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _nobody_writes(path):
                _move_aside(path)
        with Ledger.restart(
            path,
            signer=keys,
            domain=settings.domain,
            ceiling_epsilon=epsilon,
            delta=settings.ceiling.delta,
            set_by=set_by,
            booked_epsilon=booked,
            booked_delta=delta,
            last_receipt=None if receipt is None else receipt.to_json(),
        ) as ledger:
            return Restarted(
                lost=old.why,
                aside=tuple(p for part in _PARTS if remains_of(path) and (p := Path(f"{remains_of(path)[-1]}{part}")).exists()),
                booked_epsilon=booked,
                booked_delta=delta,
                ceiling_epsilon=ledger.ceiling_epsilon,
                claimed_delta=ledger.claimed_delta,
                intents=ledger.count_of_intents,
                verify_key=keys.verify_key,
                known_key=receipt is None or receipt.verify_key == keys.verify_key,
            )


def _lost(path: Path, keys: Keys, receipt: SignedReceipt | None) -> _Old:
    """Why the ledger of a place counts as lost.

    Raises:
        LedgerError: it does not.
    """
    if not os.path.lexists(path):
        left = remains_of(path)
        return _Old(why="there is no ledger any more", **(_said(left[-1]) if left else {}))
    if not path.is_file():
        raise LedgerError(f"{path} is not a file", do="Set 'ledger' in partner.toml to the place of the ledger.")
    try:
        Ledger.open(path, read_only=True).close()  # what is no ledger is not even opened for writing
        with Ledger.open(path, signer=keys) as ledger:
            check_last_receipt(ledger, "" if receipt is None else receipt.to_json())
        shown = "" if receipt is None else ", and holds what the coordinator's receipt confirms"
        do = "Go on with it. To permit more, use isthmus-client ledger raise-ceiling."
        raise LedgerError(f"the ledger is not lost: it is intact{shown}", do=do)
    except (LedgerLocked, NewerLedger, UnknownEvent):
        raise
    except LedgerBroken as error:
        return _Old(why=error.what, **_said(path))
    except WrongKey:
        return _Old(why="its private key is gone", **_said(path))


def _said(path: Path) -> dict[str, float]:
    """Ceiling and delta of what is left of a ledger, where it can still be read."""
    try:
        with Ledger.open(path, read_only=True) as ledger:
            return {"ceiling": ledger.ceiling_epsilon, "delta": ledger.claimed_delta}
    except LedgerError:
        return {}


def _booked(settings: ClientSettings, old: _Old, receipt: SignedReceipt | None, given: float | None) -> tuple[float, float]:
    """Epsilon and delta that count as spent: never below anything that is known of the lost ledger."""
    known = {
        "the ceiling that its remains show": old.ceiling,
        "the ceiling that partner.toml gave it": settings.ceiling.epsilon,
        "what the coordinator's receipt says was spent": None if receipt is None else receipt.epsilon_spent,
    }
    if given is None and old.ceiling is None:
        do = "Name the whole ceiling of the lost ledger with --booked-epsilon, raises included."
        raise UsageError("what is left of the ledger does not say what its ceiling was", do=do)
    booked = old.ceiling if given is None else given
    assert booked is not None
    for what, least in known.items():
        if least is not None and not booked >= least:
            do = "The whole ceiling of the lost ledger counts as spent, raises included; booking less would hide what was spent."
            raise LedgerError(f"--booked-epsilon {booked:g} is below {what}: {least:g}", do=do)
    return booked, max(settings.ceiling.delta, old.delta or 0.0)


@contextlib.contextmanager
def _nobody_writes(path: Path) -> Iterator[None]:
    """Keeps the lock of the lost ledger for as long as its files are moved, where there is one."""
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        do = "Wait for it to end, or end it; then try again."
        raise LedgerLocked("another process holds what is left of the ledger", do=do) from None
    finally:
        os.close(lock)


def _move_aside(path: Path) -> None:
    """Moves the database first, so that from the first step on there is no ledger, and its mark last."""
    left = [part for part in _PARTS if os.path.lexists(f"{path}{part}")]
    if not left:
        return
    numbers = [int(one.name.rpartition("-")[2]) for one in remains_of(path)]
    last = max(numbers, default=0)
    unfinished = last and "" not in left and not os.path.lexists(f"{path}.lost-{last}.lock")
    number = last if unfinished else last + 1
    for part in left:
        os.rename(f"{path}{part}", f"{path}.lost-{number}{part}")
        _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
