"""How two sides get to know one another: the card a partner sends (PARTNER.json) and the one the coordinator hands back (JOIN.json).

Each is signed by a key that it names itself. The signature shows that nobody changed a letter and that the sender holds the private key;
that the key is the right one's, it cannot show. So each card has a fingerprint, to be compared over another way than the file came by.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .addresses import is_address
from .cards import Card, between, check, exactly, fingerprint
from .errors import DataError
from .privacy.signing import Signer, is_verify_key
from .ranges import outside
from .wire_rules import SHA256, Rule, optional, text, whole

if TYPE_CHECKING:
    from cryptography import x509

    from .config import RunConfig

PARTNER_FILE = "PARTNER.json"
JOIN_FILE = "JOIN.json"
DOMAIN = text(r"[a-z0-9][a-z0-9_-]{0,63}")
"""A domain's name as `partner.toml` allows it; folders and files are named by it."""

_NODE_KEY = text(r"ecdsa-sha2-nistp384 [A-Za-z0-9+/]{16,512}={0,2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """What a partner says beforehand that it accepts: ``[agreed]`` of its settings. Its client refuses whatever lies outside.

    Cards from before 2026-11-23 say the first three only; the others are then None, and left out of what is signed.

    Args:
        max_sampling_rate: largest chance of a user to be in a batch.
        max_clip_norm: largest bound on one user's gradient.
        max_steps: most steps of a run, reserve included.
        min_noise_multiplier: least noise of a step.
        max_grid_exponent: finest grid.
        min_passport_items: fewest latest items that a passport mixes.
        min_history_decay: least weight of an item beside the next later one in a passport.
        methods: values of model.sharing that the partner takes part in, separated by commas.
        test_builds: whether runs are accepted whose noise is seeded or absent.
    """

    RULES: ClassVar[Mapping[str, Rule]] = {
        "max_sampling_rate": between(1e-6, 1.0),
        "max_clip_norm": between(1e-6, 1e3),
        "max_steps": whole(1, 10_000_000),
        "min_noise_multiplier": optional(between(1e-3, 1e4)),
        "max_grid_exponent": optional(whole(8, 40)),
        "min_passport_items": optional(whole(1, 1000)),
        "min_history_decay": optional(between(0.01, 1.0)),
        "methods": optional(text(r"[a-z0-9, -]{0,200}")),
        "test_builds": optional(lambda value: type(value) is bool),
    }

    max_sampling_rate: float
    max_clip_norm: float
    max_steps: int
    min_noise_multiplier: float | None = None
    max_grid_exponent: int | None = None
    min_passport_items: int | None = None
    min_history_decay: float | None = None
    methods: str | None = None
    test_builds: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicHalf:
    """A partner's public keys, with the fields of the files in which partners hand them to one another."""

    partner: str
    verify_key: str
    box_key: str

    @property
    def spelled(self) -> bool:
        """Whether all three are what they have to be."""
        return DOMAIN(self.partner) and is_verify_key(self.verify_key) and is_verify_key(self.box_key)

    @property
    def fingerprint(self) -> str:
        """As `isthmus-client passport keys` prints it for its owner."""
        return fingerprint(self.partner, self.verify_key, self.box_key)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def is_node_key(value: object) -> bool:
    """Whether a value is an ECDSA P-384 public key in OpenSSH's spelling, without a comment (it would name a person and a machine)."""
    if not isinstance(value, str) or not _NODE_KEY(value):
        return False
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_ssh_public_key(value.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm):
        return False
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode() == value


def _is_authority(value: object) -> bool:
    """One PEM block, the certificate of an authority. Its dates are for those to look at who use it."""
    if not isinstance(value, str) or len(value) > 16_384 or value.count("-----BEGIN ") != 1:
        return False
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        found = _certificate(value)
        authority = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    return authority and found.public_bytes(Encoding.PEM).decode() == value


@dataclass(frozen=True, slots=True, kw_only=True)
class PartnerCard(Card):
    """PARTNER.json: what a partner tells the coordinator. Nothing in it is secret or computed from users.

    Args:
        domain: name of the domain.
        verify_key: Ed25519, 32 bytes in hex: signs the ledger, the receipts and this card.
        box_key: X25519, 32 bytes in hex: passports are sealed to it.
        node_key: ECDSA P-384 public key as OpenSSH writes it, without a comment: Flower knows the partner's node by it.
        ceiling_epsilon, delta: what the domain may ever spend on one user.
        ranges: of run configurations.
        catalogue_hash: sha256 of the public catalogue; None where it is not prepared yet.
    """

    FORMAT: ClassVar[str] = "isthmus-partner-1"
    KEY: ClassVar[str] = "verify_key"
    RULES: ClassVar[Mapping[str, Rule]] = {
        "domain": DOMAIN,
        "verify_key": is_verify_key,
        "box_key": is_verify_key,
        "node_key": is_node_key,
        "ceiling_epsilon": between(1e-3, 1e6),
        "delta": between(1e-12, 1e-2),
        "ranges": lambda value: type(value) is Ranges,
        "catalogue_hash": optional(SHA256),
    }

    domain: str
    verify_key: str
    box_key: str
    node_key: str
    ceiling_epsilon: float
    delta: float
    ranges: Ranges
    catalogue_hash: str | None

    def __post_init__(self) -> None:
        if type(self.ranges) is Ranges:
            check(self.ranges, Ranges.RULES, "ranges")
        Card.__post_init__(self)

    @classmethod
    def signed(
        cls,
        signer: Signer,
        *,
        domain: str,
        box_key: str,
        node_key: str,
        ceiling_epsilon: float,
        delta: float,
        ranges: Ranges,
        catalogue_hash: str | None = None,
    ) -> Self:
        """Makes a card with the partner's key.

        Raises:
            DataError: naming the field.
        """
        values = {"domain": domain, "box_key": box_key, "node_key": node_key, "ceiling_epsilon": ceiling_epsilon, "delta": delta}
        return cls._signed(signer, {**values, "ranges": ranges, "catalogue_hash": catalogue_hash})

    @classmethod
    def _inner(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "ranges": Ranges(**exactly(values["ranges"], Ranges, "ranges"))}

    @property
    def fingerprint(self) -> str:
        """The name and all three keys, in 8 groups of 4 hex digits."""
        return fingerprint(self.FORMAT, self.domain, self.verify_key, self.box_key, self.node_key)

    @property
    def public(self) -> PublicHalf:
        """What the other partners get to know."""
        return PublicHalf(partner=self.domain, verify_key=self.verify_key, box_key=self.box_key)

    def outside(self, config: RunConfig) -> Iterator[str]:
        """What of a run configuration this partner said it would refuse, a line each. Noise that is not solved yet is not looked at."""
        unsolved = config.privacy.noise_multiplier == 0.0
        ranges = dataclasses.replace(self.ranges, min_noise_multiplier=None) if unsolved else self.ranges
        yield from outside(config, ranges, self.delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinCard(Card):
    """JOIN.json: what the coordinator tells a partner.

    Args:
        server: ``HOST:PORT`` that partners reach; an IPv6 address stands in brackets.
        ca_pem: certificate of the coordinator's own authority, one PEM block: the only one that a client trusts for ``server``.
        coordinator_key: Ed25519, 32 bytes in hex: signs run contracts and this card.
        domain: whom it was written for; None for an invitation, which is the same for everybody and names no partner.
        partners: public keys of the others, sorted by name.
    """

    FORMAT: ClassVar[str] = "isthmus-join-1"
    KEY: ClassVar[str] = "coordinator_key"
    RULES: ClassVar[Mapping[str, Rule]] = {
        "server": is_address,
        "ca_pem": _is_authority,
        "coordinator_key": is_verify_key,
        "domain": optional(DOMAIN),
        "partners": lambda value: type(value) is tuple and all(type(one) is PublicHalf and one.spelled for one in value),
    }

    server: str
    ca_pem: str
    coordinator_key: str
    domain: str | None
    partners: tuple[PublicHalf, ...]

    def __post_init__(self) -> None:
        Card.__post_init__(self)
        names = [one.partner for one in self.partners]
        if names != sorted(set(names)) or self.domain in names or (self.domain is None and names):
            raise DataError(
                "'partners' of a card names somebody twice, the receiver, or is not sorted", do="Ask the coordinator for it again."
            )

    @classmethod
    def signed(cls, signer: Signer, *, server: str, ca_pem: str, domain: str | None = None, partners: Iterable[PublicHalf] = ()) -> Self:
        """Makes a card with the coordinator's key.

        Args:
            partners: in any order; the receiver itself is left out.
        Raises:
            DataError: naming the field.
        """
        others = tuple(sorted((one for one in partners if one.partner != domain), key=lambda one: one.partner))
        return cls._signed(signer, {"server": server, "ca_pem": ca_pem, "domain": domain, "partners": others})

    @classmethod
    def _inner(cls, values: dict[str, Any]) -> dict[str, Any]:
        if type(values["partners"]) is not list:
            raise DataError("'partners' of a card is not a list", do="Ask the coordinator for it again.")
        return {**values, "partners": tuple(PublicHalf(**exactly(one, PublicHalf, "partners")) for one in values["partners"])}

    @property
    def fingerprint(self) -> str:
        """Address, authority and the coordinator's key, in 8 groups of 4 hex digits; the same for every partner of one coordinator."""
        from cryptography.hazmat.primitives.serialization import Encoding

        authority = hashlib.sha256(_certificate(self.ca_pem).public_bytes(Encoding.DER)).hexdigest()
        return fingerprint(self.FORMAT, self.server, authority, self.coordinator_key)

    @property
    def ca_until(self) -> datetime:
        """When the authority's certificate ends, in UTC."""
        return _certificate(self.ca_pem).not_valid_after_utc


def _certificate(pem: str) -> x509.Certificate:
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem.encode())
