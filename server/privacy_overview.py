"""What the coordinator knows about spending: receipts -> epsilon by domain, and for a person in k domains.

The ledger at the partner decides; this is only what its receipts say. A person in k domains is covered by the composition over those k
(never by the maximum). It can be computed where the mechanism of a domain's last receipt, as often as it counts, explains the epsilon that
the receipt shows. A ledger that holds other runs, releases or a booked loss shows another epsilon, and its claim may be its ceiling: then
the number is what the receipts prove at the least, and says so.
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
    """One domain's last receipt in figures. ``recomputed`` is epsilon by the receipt's mechanism and count alone."""

    domain: str
    epsilon_spent: float
    count_of_intents: int
    recomputed: float

    @property
    def explained(self) -> bool:
        """Whether mechanism and count say what was spent: the ledger holds one run, or several of the same kind."""
        return explains(self.recomputed, self.epsilon_spent)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyOverview:
    """``for_k_domains[k - 1]`` is epsilon for a person in those k domains that spent most; where ``at_least[k - 1]``, it may be more."""

    delta: float
    domains: tuple[DomainSpending, ...]
    for_k_domains: tuple[float, ...]
    at_least: tuple[bool, ...]

    def to_json(self) -> dict[str, object]:
        """Plain values; infinity becomes null."""
        return {
            "delta": self.delta,
            "domains": {
                spent.domain: {
                    "epsilon": finite(spent.epsilon_spent),
                    "events": spent.count_of_intents,
                    "explained": spent.explained,
                }
                for spent in self.domains
            },
            "for_k_domains": [finite(value) for value in self.for_k_domains],
            "for_k_domains_at_least": list(self.at_least),
        }


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def explains(recomputed: float, spent: float) -> bool:
    """Whether two epsilons are the same but for what accountants grant one another."""
    return recomputed == spent or abs(recomputed - spent) <= max(TOLERANCE, 0.01 * spent)


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
            recomputed=epsilon_pld(events[domain], delta),
        )
        for domain, receipt in sorted(receipts.items())
    )
    most = sorted(domains, key=lambda spent: (-spent.epsilon_spent, spent.domain))
    composed: list[float] = []
    for k in range(1, len(most) + 1):
        pooled = [event for spent in most[:k] if spent.explained for event in events[spent.domain]]
        together = epsilon_pld(pooled, delta) if k > 1 and pooled else 0.0
        composed.append(max(most[0].epsilon_spent, together))
    at_least = tuple(not all(spent.explained for spent in most[:k]) for k in range(1, len(most) + 1))
    return PrivacyOverview(delta=delta, domains=domains, for_k_domains=tuple(composed), at_least=at_least)
