"""What preparation found in each partner's files. Exact counts: at a partner they stay there, here all partners sit at one desk."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from client.preparation import PreparedDomain


def told(domains: Mapping[str, PreparedDomain]) -> list[str]:
    """A line for each thing that a person should know before the federation begins: the files, then pairs that nothing can pass between."""
    lines = [f"{name}: {line}" for name, domain in domains.items() for line in domain.said()]
    for one, other in itertools.combinations(domains, 2):
        if not _linked(domains[one], other) & _linked(domains[other], one):
            lines.append(f"no linked people between {one} and {other}: no direction")
    return lines


def _linked(domain: PreparedDomain, partner: str) -> set[str]:
    people = domain.links.get(partner)
    return set() if people is None else set(people.link_ids.tolist())
