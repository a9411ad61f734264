"""Keys and cards for tests: as a partner and as a coordinator make them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.enrolment import JoinCard, PartnerCard, Ranges
from shared.privacy.signing import Signer, SigningPair

RANGES = Ranges(
    max_sampling_rate=0.5,
    max_clip_norm=10.0,
    max_steps=10_000,
    min_noise_multiplier=0.3,
    max_grid_exponent=30,
    min_passport_items=3,
    min_history_decay=0.7,
    methods="shared-private,shared",
    test_builds=False,
)


def node_key(curve: ec.EllipticCurve | None = None) -> str:
    """The public half of a fresh node key, as a partner sends it."""
    public = ec.generate_private_key(curve or ec.SECP384R1()).public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def authority(*, ca: bool = True) -> str:
    """A self-signed certificate in PEM."""
    key, name = ec.generate_private_key(ec.SECP384R1()), x509.Name([])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
    built = built.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    return built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


NODE_KEY, CA_PEM = node_key(), authority()


def partner_card(signer: Signer | None = None, **changed: Any) -> PartnerCard:
    """A card that nothing is wrong with, but for what is changed."""
    values: dict[str, Any] = {
        "domain": "books",
        "box_key": "0b" * 32,
        "node_key": NODE_KEY,
        "ceiling_epsilon": 8.0,
        "delta": 1e-6,
        "ranges": RANGES,
        "catalogue_hash": "c4" * 32,
    }
    return PartnerCard.signed(signer or SigningPair.generate(), **{**values, **changed})


def join_card(signer: Signer | None = None, **changed: Any) -> JoinCard:
    values: dict[str, Any] = {"server": "isthmus.example:8443", "ca_pem": CA_PEM, "domain": "books"}
    return JoinCard.signed(signer or SigningPair.generate(), **{**values, **changed})
