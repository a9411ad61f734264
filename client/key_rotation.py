"""New keys in place of old ones, such that no power cut leaves a ledger without the key that it is signed with.

The order of a rotation, each step on disk before the next begins::

    1. partner.keys.next   the new keys, beside the old ones
    2. a ``key`` event     in the ledger: signed by the old key, confirmed by the new one; from here on the new key is in force
    3. a rename            of partner.keys.next to partner.keys; the old private keys are gone with it

Cut off before 2, the rotation never happened; cut off after it, it has. Only the ledger knows which, so whoever asks for this domain's keys
and finds ``partner.keys.next`` asks the ledger, and takes the step back or the step that is missing. One rotation at a time: a lock stands
in the folder, and the ledger's own lock is held while the event is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import LedgerError, LedgerLocked
from shared.privacy.ledger import Ledger

from .durable_files import storage_errors
from .keys import KEY_FILE, Keys, PublicKeys
from .public_keys import public_of
from .settings import ClientSettings

NEXT = KEY_FILE + ".next"
_LOCK = KEY_FILE + ".lock"
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """Public halves before and after."""

    old: PublicKeys
    new: PublicKeys


def own_keys(settings: ClientSettings) -> Keys:
    """This domain's keys, made where there are none; a rotation that was cut off is finished or undone first.

    Raises:
        PassportError: the file is damaged, or others may read it.
        LedgerLocked: a rotation is under way, and does not end.
        StorageError: the folder cannot be written.
    """
    folder = settings.at_home("keys")
    if (folder / NEXT).exists():
        with one_at_a_time(settings), contextlib.suppress(LedgerError):  # an unreadable ledger cannot say which counts: both stay
            _settle(settings, folder)
    return Keys.load_or_create(folder)


def rotate(settings: ClientSettings) -> Rotated:
    """Makes new keys, has the ledger's old key sign the new one, and puts the new ones in place of the old ones.

    The old private keys are of no use afterwards and are not kept: nothing that they could still sign would be believed. Their public
    halves stay in the ledger, which they signed.

    Raises:
        LedgerLocked: a run or another command writes to the ledger.
        WrongKey: the ledger is signed with another key than this domain's.
        LedgerError: there is no ledger, or it cannot be used.
    """
    folder = settings.at_home("keys")
    old = own_keys(settings)
    before = public_of(settings, old)  # what is wrong with the address is said before anything changes
    with one_at_a_time(settings):
        with Ledger.open(settings.ledger_path, signer=old) as ledger:
            Keys.write_new(folder / NEXT)
            new = Keys.load(folder / NEXT)
            ledger.rotate_key(new)
        _settle(settings, folder)
    return Rotated(old=before, new=public_of(settings, new))


def _settle(settings: ClientSettings, folder: Path) -> None:
    """Leaves one file of keys, that of the key in force; both where the ledger names neither."""
    following, current = folder / NEXT, folder / KEY_FILE
    if not following.exists():
        return
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        in_force = ledger.verify_key
    with storage_errors(f"'{current.name}'"):
        if in_force == Keys.load(following).verify_key:
            os.replace(following, current)
        elif current.exists() and in_force == Keys.load(current).verify_key:
            following.unlink()
        else:
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def one_at_a_time(settings: ClientSettings) -> Iterator[None]:
    """Of all that changes this domain's keys, or puts a new ledger in place of a lost one, one at a time.

    Raises:
        LedgerLocked: another process is at it, and does not end.
    """
    folder = settings.at_home("keys")
    with storage_errors(f"'{_LOCK}'"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    do = "Wait for it to end, then try again."
                    raise LedgerLocked("another process is changing the keys of this domain", do=do) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)
