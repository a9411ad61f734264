"""When a run cannot go on with those who are left, and whether asking them again could change that."""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import FederationError

CEILING = "refused-ceiling"
"""The code of a partner whose ceiling, or whose reserve for this run, is used up."""


class TooFewClients(FederationError):
    """A run cannot go on with those who are left. ``dropped`` says who was dropped by which code."""

    DO = "Look at the logs of the clients; then resume the run, or lower aggregation.min_clients."

    def __init__(self, stage: str, got: int, needed: int, dropped: Sequence[tuple[str, str]]) -> None:
        self.dropped = tuple(dropped)
        reasons = ", ".join(f"{domain}: {code}" for domain, code in dropped) or "nobody else is connected"
        super().__init__(f"{stage}: {got} of at least {needed} clients can go on ({reasons})", do=self.DO)


class BudgetUsedUp(TooFewClients):
    """Partners have nothing left for this run, and without them there are too few: the end state ``budget``."""

    DO = "The layer of the last round is kept. Resume once other partners have joined; else a new run needs new agreements."


def too_few(stage: str, got: int, needed: int, dropped: Sequence[tuple[str, str]]) -> TooFewClients:
    """Why a run ends: for want of budget where all who failed otherwise would not be enough either, if they came back.

    Args:
        got: how many answered well.
        dropped: who did not, and by which code, oldest first.

    >>> type(too_few("round 2", 1, 2, [("books", "refused-ceiling")])).__name__
    'BudgetUsedUp'
    >>> type(too_few("round 2", 1, 2, [("books", "refused-ceiling"), ("films", "no-reply")])).__name__
    'TooFewClients'
    >>> type(too_few("round 2", 1, 2, [("books", "no-reply"), ("books", "refused-ceiling")])).__name__
    'BudgetUsedUp'
    """
    last = dict(dropped)  # who was late first and had nothing left then would not be enough for having been late
    others = [domain for domain, code in last.items() if code != CEILING]
    wanting = len(others) < len(last) and got + len(others) < needed
    return (BudgetUsedUp if wanting else TooFewClients)(stage, got, needed, dropped)
