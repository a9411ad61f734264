"""The tree of errors. Every error says what is wrong, where, and what to do next.

::

    IsthmusError                    exit   may its text leave a client?
    |-- UsageError                    2    no    a command was called wrongly
    |-- ConfigError                   3    no    a configuration value is unknown, out of range or contradictory
    |-- DataError                     4    no    a partner's file cannot be used
    |   |-- InvalidInteraction        4    no    a row of the interactions
    |   `-- InvalidItem               4    no    a row of the catalogue
    |-- RunFolderError                5    no    a run folder exists already, or is not one
    |-- StorageError                  6    no    no space left, or a file cannot be written
    |-- LedgerError                   7    no    a ledger cannot be used
    |   |-- LedgerLocked              8    no    another process holds the ledger
    |   |-- LedgerBroken              9    no    chain, sequence, signatures or schema of the ledger do not hold
    |   |   |-- NotALedger           18    no    a file is no ledger of isthmus
    |   |   |-- EmptyLedger          19    no    a ledger has no genesis
    |   |   |-- NewerLedger          20    no    a ledger is of a newer format
    |   |   |-- UnknownEvent         21    no    a ledger holds an event of a kind that this version does not know
    |   |   `-- RolledBack           22    no    a ledger is older than what was confirmed or receipted
    |   `-- BudgetExhausted          10    no    a debit would pass the partner's ceiling
    |-- AuditError                   23    no    evidence that was handed to an audit cannot be used
    |   |-- WrongKey                 24    no    a key is not the one that a ledger is signed with
    |   |-- ForeignReceipts          25    no    receipts belong to another partner
    |   `-- MixedDeltas              26    no    ledgers with different deltas cannot be added up
    |-- UnreachableBudget            11    no    no noise reaches the target epsilon
    |-- PassportError                12    no    a passport is forged, expired, foreign or malformed
    |-- EgressRefused                13    no    a message was stopped on its way out of a client
    |-- AdmissionRefused             14    no    a reply was stopped on its way into the server
    |-- Refusal                      15    code  a client declines before any data are opened (fixed list of codes)
    |-- FederationError              16    no    a run cannot go on (too few clients, nothing to resume)
    `-- StateError                   17    no    a client's training state does not fit the message it received

No text leaves a client, whatever the error: the egress gate turns each of them into one fixed reply; of a `Refusal` only its code, taken
from `REFUSAL_CODES`, may travel. Texts on the client name fields and row numbers, never values.
"""

from __future__ import annotations

from typing import ClassVar

REFUSAL_CODES: frozenset[str] = frozenset({"bundle", "range", "signature", "ceiling", "version", "declined"})


class IsthmusError(Exception):
    """Root of every error a person is expected to meet.

    Args:
        what: one line: what is wrong and where.
        do: what the reader can do about it; empty where nothing can be done.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, do: str = "") -> None:
        self.what = what
        self.do = do
        super().__init__(f"{what}\n  {do}" if do else what)


class UsageError(IsthmusError):
    exit_code = 2


class ConfigError(IsthmusError):
    exit_code = 3


class DataError(IsthmusError):
    exit_code = 4


class InvalidInteraction(DataError):
    """A row of the interactions cannot be used."""


class InvalidItem(DataError):
    """A row of the catalogue cannot be used."""


class RunFolderError(IsthmusError):
    exit_code = 5


class StorageError(IsthmusError):
    exit_code = 6


class LedgerError(IsthmusError):
    exit_code = 7


class LedgerLocked(LedgerError):
    exit_code = 8


class LedgerBroken(LedgerError):
    exit_code = 9


class NotALedger(LedgerBroken):
    exit_code = 18


class EmptyLedger(LedgerBroken):
    exit_code = 19


class NewerLedger(LedgerBroken):
    exit_code = 20


class UnknownEvent(LedgerBroken):
    exit_code = 21


class RolledBack(LedgerBroken):
    exit_code = 22


class AuditError(IsthmusError):
    exit_code = 23


class WrongKey(AuditError):
    exit_code = 24


class ForeignReceipts(AuditError):
    exit_code = 25


class MixedDeltas(AuditError):
    exit_code = 26


class BudgetExhausted(LedgerError):
    """A debit would pass the ceiling: nothing is trained.

    Args:
        what: which round or run of which domain asks for it.
        requested: epsilon the debit would add.
        remaining: epsilon left below the ceiling.
        ceiling: the partner's ceiling.
        delta: the delta of all three.
    """

    exit_code = 10

    def __init__(self, what: str, *, requested: float, remaining: float, ceiling: float, delta: float) -> None:
        self.requested, self.remaining, self.ceiling, self.delta = requested, remaining, ceiling, delta
        super().__init__(
            f"{what}\n  requested {requested:.2f}   remaining {remaining:.2f}   ceiling {ceiling:.2f} (delta {delta:g}, unit: user)",
            do="Raise the ceiling of this domain, or ask the coordinator for fewer rounds or more noise.",
        )


class UnreachableBudget(IsthmusError):
    exit_code = 11


class PassportError(IsthmusError):
    exit_code = 12


class EgressRefused(IsthmusError):
    exit_code = 13


class AdmissionRefused(IsthmusError):
    exit_code = 14


class Refusal(IsthmusError):
    """A client declines a run before it opens any data.

    Args:
        code: one of `REFUSAL_CODES`; the only part that may leave the client.
        what: the reason, for the partner's own eyes.
    """

    exit_code = 15

    def __init__(self, code: str, what: str, *, do: str = "") -> None:
        if code not in REFUSAL_CODES:
            raise ValueError(f"not a refusal code: {code}")
        self.code = code
        super().__init__(what, do=do)


class FederationError(IsthmusError):
    exit_code = 16


class StateError(IsthmusError):
    exit_code = 17
