"""The longest that an app may take for one message: it ends before the server stops waiting, whatever it is doing.

At the deadline the app gets an exception, which the gate turns into its fixed reply. An app that does not react, because it hangs outside
of Python or swallows the exception, loses its process a little later. Either way the ledger keeps what was debited, and the state on disk
stays the one of the round before: a round can be cut off anywhere.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

LONGEST_MARGIN = 0.1
SHORTEST_MARGIN_S = 10.0
GRACE_S = 30.0
"""The longest that a process may take to react to its deadline."""


class DeadlinePassed(TimeoutError):
    """The app took longer than the partner permits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """Seconds from the moment at which the app begins.

    Args:
        soft_s: until it gets the exception; 0 = no deadline.
        hard_s: until its process ends.
    """

    soft_s: float
    hard_s: float


def deadline(*, permitted_s: float, ttl_s: float) -> Deadline:
    """The deadline for a message.

    Between the server's sending and the app's beginning lie the node's polling, the way here and the start of a process, and after the app
    the way back: a tenth of the time, at least 10 s and at most half of it, is left for that. The server's clock is not asked.

    Args:
        permitted_s: what this partner permits at most; 0 = nothing of its own.
        ttl_s: how long the server waits for the reply, as the message says; 0 = it does not say.

    >>> deadline(permitted_s=0, ttl_s=600)
    Deadline(soft_s=540.0, hard_s=570.0)
    >>> deadline(permitted_s=0, ttl_s=15)
    Deadline(soft_s=7.5, hard_s=11.25)
    >>> deadline(permitted_s=100, ttl_s=600)
    Deadline(soft_s=100.0, hard_s=130.0)
    """
    found = [Deadline(soft_s=float(permitted_s), hard_s=permitted_s + GRACE_S)] if permitted_s > 0 else []
    if ttl_s > 0:
        margin = min(ttl_s / 2, max(LONGEST_MARGIN * ttl_s, SHORTEST_MARGIN_S))
        found.append(Deadline(soft_s=ttl_s - margin, hard_s=ttl_s - margin + min(margin / 2, GRACE_S)))
    return Deadline(soft_s=min((one.soft_s for one in found), default=0.0), hard_s=min((one.hard_s for one in found), default=0.0))


@contextlib.contextmanager
def within(limit: Deadline) -> Iterator[None]:
    """Cuts the block off at its deadline. In the main thread only, because signals arrive there.

    Raises:
        DeadlinePassed: inside the block.
    """
    if limit.soft_s <= 0:
        yield
        return
    before = signal.signal(signal.SIGALRM, _passed)
    # A thread of its own, outside of Python, which needs nobody's leave; it says where the process was, in names of functions alone.
    faulthandler.dump_traceback_later(limit.hard_s, exit=True, file=sys.__stderr__ or 2)
    signal.setitimer(signal.ITIMER_REAL, limit.soft_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def _passed(_signal: int, _frame: FrameType | None) -> None:
    raise DeadlinePassed("the deadline of this partner for one message has passed")
