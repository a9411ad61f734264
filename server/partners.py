"""Who is enrolled: which node speaks for which domain, the ceiling and the key agreed with each, and the last receipt of each."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.config import build, setting
from shared.errors import AdmissionRefused, ConfigError
from shared.privacy.receipts import SignedReceipt
from shared.privacy.signing import is_verify_key
from shared.wire_rules import DOMAIN, SHA256

PARTNERS_FILE = "partners.toml"
"""Beside a run's TOML, and in the coordinator's home."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the coordinator and one partner agreed on."""

    ceiling_epsilon: float = setting(math.inf, "largest epsilon that this domain's ledger may show", low=0.0)
    verify_key: str = setting("", "public key of its receipts, in hex; empty: the key of the first receipt that was kept")
    catalogue_hash: str = setting("", "sha256 of the public catalogue that it enrolled with; empty: none is known")

    def __post_init__(self) -> None:
        if self.catalogue_hash and not SHA256(self.catalogue_hash):
            raise ConfigError("'catalogue_hash' is not a sha256 of 64 small hex digits", do="Copy it from the partner's card.")
        if self.verify_key and not is_verify_key(self.verify_key):
            raise ConfigError("'verify_key' is not a public key of 64 small hex digits", do="Copy it from the partner's public keys.")


def _nobody_is() -> None:
    return None


@dataclass(slots=True, kw_only=True)
class Partners:
    """The register of one run. Without agreements anybody may take part and no ceiling is checked (simulations).

    Args:
        agreements: by domain; None where enrolment is open.
        receipts: the last one of each domain, from this run or an earlier one.
        registered: asked for node -> domain as the SuperLink admitted them, by their keys; None where nobody is admitted by key.
    """

    agreements: Mapping[str, Agreement] | None = None
    receipts: dict[str, SignedReceipt] = field(default_factory=dict)
    registered: Callable[[], Mapping[int, str] | None] = _nobody_is
    _domains: dict[int, str] = field(default_factory=dict)

    @classmethod
    def from_toml(cls, text: str) -> Partners:
        """Reads tables named by domain, each with the keys of `Agreement`.

        Raises:
            ConfigError: naming the key.
        """
        try:
            values: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"the list of partners is not TOML: {error}") from None
        agreements: dict[str, Agreement] = {}
        for domain, table in values.items():
            if not DOMAIN(domain) or not isinstance(table, Mapping):
                raise ConfigError(f"'{domain}' is not a domain with a table of its own", do="Write [domain-name] and its keys below.")
            agreements[domain] = build(Agreement, table, f"{domain}.")
        return cls(agreements=agreements)

    @property
    def expected(self) -> int | None:
        """How many clients there can be; None when enrolment is open."""
        return None if self.agreements is None else len(self.agreements)

    @property
    def domains(self) -> list[str]:
        """Domains that said hello, sorted."""
        return sorted(self._domains.values())

    @property
    def nodes(self) -> list[int]:
        """Their nodes, in the order of `domains`."""
        return sorted(self._domains, key=lambda node: self._domains[node])

    def domain_of(self, node: int) -> str | None:
        return self._domains.get(node)

    def ceiling_of(self, domain: str) -> float:
        return math.inf if self.agreements is None else self.agreements[domain].ceiling_epsilon

    def key_of(self, domain: str) -> str | None:
        """The key that has to sign the receipts of a domain: the agreed one, else that of its last receipt; None before there is any."""
        agreed = "" if self.agreements is None else self.agreements[domain].verify_key
        last = self.receipts.get(domain)
        return agreed or (None if last is None else last.verify_key)

    def other_catalogues(self, brought: Mapping[str, str]) -> list[str]:
        """Domains whose catalogue is not the one that they enrolled with, sorted.

        Args:
            brought: domain -> sha256 of the catalogue whose moments it sent.
        """
        agreed = {domain: one.catalogue_hash for domain, one in (self.agreements or {}).items() if one.catalogue_hash}
        return sorted(domain for domain, digest in brought.items() if agreed.get(domain, digest) != digest)

    def registered_as(self, node: int) -> str | None:
        """The domain whose key a node proved to hold when it connected; None where nobody knows."""
        known = self.registered()
        return None if known is None else known.get(node)

    def pin(self, node: int, domain: str, connected: Iterable[int]) -> None:
        """Remembers that this node speaks for this domain, for the rest of the run.

        Raises:
            AdmissionRefused: the domain is not enrolled, or is not the one whose key the node holds, or another connected node speaks for
                it, or this node spoke for another one.
        """
        if self.agreements is not None and domain not in self.agreements:
            raise AdmissionRefused("a node speaks for a domain that is not enrolled", do="Enrol the partner first.")
        if self.registered() is not None and self.registered_as(node) != domain:
            raise AdmissionRefused("a node speaks for another domain than the one whose key it holds")
        if self._domains.get(node, domain) != domain:
            raise AdmissionRefused("a node changed its domain during a run")
        holders = [other for other, name in self._domains.items() if name == domain and other != node]
        if any(other in set(connected) for other in holders):
            raise AdmissionRefused("two connected nodes speak for one domain", do="Each partner runs one client at a time.")
        for other in holders:
            del self._domains[other]
        self._domains[node] = domain

    def drop(self, node: int) -> None:
        """Leaves a node out of the rest of the run."""
        self._domains.pop(node, None)
