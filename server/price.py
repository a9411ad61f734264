"""What a run would cost, before anybody is asked: by domain, and for a person in k domains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.config import RunConfig
from shared.enrolment import PartnerCard
from shared.privacy.mechanism import Mechanism
from shared.privacy.receipts import SignedReceipt

from .privacy_overview import explains, finite, spent_events


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainPrice:
    """One domain's price.

    Args:
        spent: epsilon by its last receipt; 0 before there is any.
        after: epsilon once the whole schedule is reserved.
        at_least: ``after`` may be more: the ledger holds earlier runs and adds them up by its own rule, and only its owner can ask it.
        ceiling: the largest epsilon that the partner agreed to.
        against: why its client would refuse, a line each.
    """

    domain: str
    spent: float
    after: float
    at_least: bool
    ceiling: float
    against: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Prices at one delta. A schedule is reserved as a whole, its reserve rounds included; what is not needed is given back at the end.

    Args:
        alone: epsilon of the rounds, if none has to be repeated; `reserved` with the reserve rounds.
        for_k_domains: ``[k - 1]`` is epsilon of this run for a person in k domains, reserve rounds included.
    """

    delta: float
    alone: float
    reserved: float
    domains: tuple[DomainPrice, ...]
    for_k_domains: tuple[float, ...]

    def willing(self) -> list[str]:
        """Domains whose agreement allows the run."""
        return [one.domain for one in self.domains if not one.against]

    def to_json(self) -> dict[str, Any]:
        """Plain values; infinity becomes null."""
        return {
            "delta": self.delta,
            "alone": finite(self.alone),
            "reserved": finite(self.reserved),
            "for_k_domains": [finite(value) for value in self.for_k_domains],
            "domains": {
                one.domain: {
                    "spent": finite(one.spent),
                    "after": finite(one.after),
                    "after_at_least": one.at_least,
                    "ceiling": one.ceiling,
                    "against": list(one.against),
                }
                for one in self.domains
            },
        }


def price(config: RunConfig, cards: Sequence[PartnerCard], receipts: Mapping[str, SignedReceipt]) -> Price:
    """Prices a run.

    Args:
        config: its noise solved.
        cards: of the partners who are enrolled.
        receipts: the last one of each domain.
    """
    from shared.privacy.accountant import epsilon_pld

    privacy = config.privacy
    step = _step(config)

    def of(events: Sequence[Mechanism]) -> float:
        return epsilon_pld(events, privacy.delta)

    reserved = of([step.for_steps(privacy.total_steps)])
    domains = tuple(_domain(config, card, receipts.get(card.domain), reserved) for card in sorted(cards, key=lambda one: one.domain))
    return Price(
        delta=privacy.delta,
        alone=of([step.for_steps(privacy.rounds * privacy.steps_per_round)]),
        reserved=reserved,
        domains=domains,
        for_k_domains=tuple(of([step.for_steps(k * privacy.total_steps)]) for k in range(1, max(len(cards), 1) + 1)),
    )


def _domain(config: RunConfig, card: PartnerCard, receipt: SignedReceipt | None, reserved: float) -> DomainPrice:
    spent = 0.0 if receipt is None else receipt.epsilon_spent
    after = max(spent, reserved)
    if receipt is not None and spent > 0.0:
        after = max(after, _together(config, receipt))
    against = [f"'{card.domain}': {line}" for line in card.outside(config)]
    if after > card.ceiling_epsilon:
        against.append(f"epsilon {after:.2f} would pass the ceiling {card.ceiling_epsilon:g} of '{card.domain}'")
    return DomainPrice(
        domain=card.domain, spent=spent, after=after, at_least=spent > 0.0, ceiling=card.ceiling_epsilon, against=tuple(against)
    )


def _together(config: RunConfig, receipt: SignedReceipt) -> float:
    """Epsilon of what a receipt says was spent and of a whole schedule on top of it; 0 where the receipt alone does not say what that was.

    The ledger decides by a filter that never counts less (`shared.privacy.budget`).
    """
    from shared.privacy.accountant import epsilon_pld

    events = spent_events(receipt)
    if not explains(epsilon_pld(events, config.privacy.delta), receipt.epsilon_spent):
        return 0.0
    return epsilon_pld([*events, _step(config).for_steps(config.privacy.total_steps)], config.privacy.delta)


def _step(config: RunConfig) -> Mechanism:
    """One step, as ledgers will book it; only sampling rate and noise have a price. A test build is priced like the run it stands for."""
    privacy = config.privacy
    protects = math.isfinite(privacy.epsilon) and privacy.noise_multiplier > 0.0
    return Mechanism(
        kind="poisson_gaussian" if protects else "none",
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=privacy.clip_norm,
        grid=privacy.grid,
        dimension=1,
        steps=1,
    )
