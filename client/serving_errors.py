"""Errors as callers of the service see them: a status code, and a line that names fields, never values. No traceback.

Callers are the partner's own programs, but what they sent may be anybody's text, and logs of callers are read by many.
"""

from __future__ import annotations

import asyncio

import grpc  # type: ignore[import-untyped]

from shared.errors import IsthmusError, PassportError, StateError, StorageError, UsageError

from .live_profiles import ForgottenUser
from .recommender.requests import UnknownItem, UnknownUser
from .serving_batches import TooManyWaiting

Code = grpc.StatusCode


class NothingNew(UsageError):
    """A file of passports holds nothing that is not here already."""


_CODES: tuple[tuple[type[BaseException], grpc.StatusCode], ...] = (
    (UnknownUser, Code.NOT_FOUND),
    (UnknownItem, Code.NOT_FOUND),
    (ForgottenUser, Code.FAILED_PRECONDITION),
    (NothingNew, Code.ALREADY_EXISTS),
    (UsageError, Code.INVALID_ARGUMENT),
    (PassportError, Code.INVALID_ARGUMENT),
    (StorageError, Code.UNAVAILABLE),
    (StateError, Code.FAILED_PRECONDITION),
)


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """What a caller is told.

    >>> status_of(UsageError("'k' is outside 1 to 24"))
    (<StatusCode.INVALID_ARGUMENT: (3, 'invalid argument')>, "'k' is outside 1 to 24")
    >>> status_of(ValueError("secret"))
    (<StatusCode.INTERNAL: (13, 'internal')>, 'something unexpected; the reason is told on the server')
    """
    if isinstance(error, TooManyWaiting):
        return Code.RESOURCE_EXHAUSTED, "too many calls wait; call again later"
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return Code.DEADLINE_EXCEEDED, "it took longer than the server allows"
    for kind, code in _CODES:
        if isinstance(error, kind) and isinstance(error, IsthmusError):
            return code, " ".join(f"{error.what}. {error.do}".split()) if error.do else error.what
    return Code.INTERNAL, "something unexpected; the reason is told on the server"


def reason_of(error: BaseException) -> str:
    """What is told on this machine of an error that callers learn nothing of; no text of theirs."""
    return error.what if isinstance(error, IsthmusError) else f"unexpected {type(error).__name__}"
