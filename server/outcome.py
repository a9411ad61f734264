"""What a run leaves with the coordinator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shared import wire
from shared.interest_space import InterestSpace
from shared.privacy.receipts import SignedReceipt

from .messenger import Traffic


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """A finished run.

    Args:
        receipts: the last one of each domain that answered a round of this run.
        not_delivered: domains that did not confirm the final layer, and why, by code.
    """

    run_id: str
    round: int
    space: InterestSpace
    layer: dict[str, np.ndarray]
    domains: tuple[str, ...]
    receipts: dict[str, SignedReceipt]
    not_delivered: tuple[tuple[str, str], ...]
    traffic: dict[str, Traffic]

    @property
    def delivered(self) -> list[str]:
        """Domains that took part to the end and hold the final layer."""
        missing = {domain for domain, _ in self.not_delivered}
        return [domain for domain in self.domains if domain not in missing]

    def to_json(self) -> dict[str, object]:
        return {
            "run_id": self.run_id,
            "rounds": self.round,
            "space_version": self.space.version,
            "layer_sha256": wire.layer_sha256(self.layer),
            "domains": list(self.domains),
            "not_delivered": [{"domain": domain, "code": code} for domain, code in self.not_delivered],
            "bytes": {domain: traffic.to_json() for domain, traffic in sorted(self.traffic.items())},
        }
