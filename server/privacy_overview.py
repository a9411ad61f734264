"""What the coordinator knows about spending: receipts -> epsilon by domain, and for a person in k domains.

The ledger at the partner decides; this is only what its receipts say. A person in k domains is covered by the composition over those k
(never by the maximum). It is computed from the mechanisms in the receipts, for the k domains that spent most; where a receipt shows more
epsilon than its own mechanism explains (an earlier run with another mechanism stands in that ledger), no number is given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from shared.privacy.mechanism import Mechanism
from shared.privacy.receipts import SignedReceipt

TOLERANCE = 0.02  # of epsilon, or 1 %: the same that the accountants grant one another


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSpending:
    """One domain's last receipt in figures. ``explained`` is epsilon recomputed from the receipt's mechanism and count alone."""

    domain: str
    epsilon_spent: float
    count_of_intents: int
    explained: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyOverview:
    """``for_k_domains[k - 1]`` is epsilon for a person in k domains; None where the receipts do not explain what was spent."""

    delta: float
    domains: tuple[DomainSpending, ...]
    for_k_domains: tuple[float | None, ...]

    def to_json(self) -> dict[str, object]:
        """Plain values; infinity becomes null."""
        return {
            "delta": self.delta,
            "domains": {
                spent.domain: {
                    "epsilon": finite(spent.epsilon_spent),
                    "events": spent.count_of_intents,
                    "explained": finite(spent.explained),
                }
                for spent in self.domains
            },
            "for_k_domains": [None if value is None else finite(value) for value in self.for_k_domains],
        }


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def spent_events(receipt: SignedReceipt) -> list[Mechanism]:
    """What the receipt says was done, as if every intent of the ledger had been this round's mechanism."""
    mechanism = Mechanism.from_record(json.loads(receipt.mechanism))
    return [mechanism.for_steps(mechanism.steps * receipt.count_of_intents)]


def overview(receipts: Mapping[str, SignedReceipt], delta: float) -> PrivacyOverview:
    """Spending by domain, and for a person in k = 1..K domains.

    Args:
        receipts: the last one of each domain.
        delta: of all epsilons.
    """
    from shared.privacy.accountant import epsilon_pld

    events = {domain: spent_events(receipt) for domain, receipt in receipts.items()}
    domains = tuple(
        DomainSpending(
            domain=domain,
            epsilon_spent=receipt.epsilon_spent,
            count_of_intents=receipt.count_of_intents,
            explained=epsilon_pld(events[domain], delta),
        )
        for domain, receipt in sorted(receipts.items())
    )
    explained = all(spent.epsilon_spent <= spent.explained + max(TOLERANCE, 0.01 * spent.explained) for spent in domains)
    most = sorted(domains, key=lambda spent: (-spent.explained, spent.domain))
    composed: list[float | None] = []
    for k in range(1, len(most) + 1):
        pooled = [event for spent in most[:k] for event in events[spent.domain]]
        composed.append(epsilon_pld(pooled, delta) if explained else None)
    return PrivacyOverview(delta=delta, domains=domains, for_k_domains=tuple(composed))
