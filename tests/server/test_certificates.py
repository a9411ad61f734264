"""The authority and the server's certificate, held against a strict client: who is let in, who is not, and who is told in time."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from server import certificates
from shared.errors import ConfigError

NOW = datetime.now(UTC)
HOSTS = ("isthmus.example", "192.0.2.7", "2001:db8::7")


class Pair:
    """An authority and a server's certificate on disk."""

    def __init__(self, folder: Path, *, now: datetime = NOW) -> None:
        self.ca, self.ca_key, self.leaf, self.key = (folder / name for name in ("ca.crt", "ca.key", "server.pem", "server.key"))
        for path in (self.ca_key, self.key):
            path.touch(mode=0o600)
            path.write_bytes(certificates.new_key())
        self.ca.write_bytes(certificates.authority(self.ca_key.read_bytes(), now))
        self.issue(now=now)

    def issue(self, *, now: datetime = NOW, hosts: tuple[str, ...] = HOSTS) -> None:
        ca = {"ca_pem": self.ca.read_bytes(), "ca_key_pem": self.ca_key.read_bytes()}
        self.leaf.write_bytes(certificates.leaf(self.key.read_bytes(), **ca, hosts=hosts, now=now))


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def greets(pair: Pair, name: str, *, ca: bytes | None = None) -> bool:
    """Whether a strict client, which trusts one authority, shakes hands with the server under a name. No socket: the two ends in memory."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_verify_locations(cadata=(ca or pair.ca.read_bytes()).decode())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.leaf, pair.key)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname=name), server.wrap_bio(there, back, server_side=True)]
    try:
        for _ in range(4):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError:
        return False
    return ends[0].version() == "TLSv1.3"


@pytest.mark.parametrize("name", [*HOSTS, "localhost", "127.0.0.1", "::1"])
def test_a_strict_client_is_greeted_under_every_name_and_on_this_machine(pair: Pair, name: str) -> None:
    assert greets(pair, name)


@pytest.mark.parametrize("name", ["other.example", "sub.isthmus.example", "192.0.2.8"])
def test_under_another_name_nobody_is_greeted(pair: Pair, name: str) -> None:
    assert not greets(pair, name)


def test_a_renewed_certificate_holds_for_whoever_trusted_the_first(pair: Pair) -> None:
    trusted, first = pair.ca.read_bytes(), pair.leaf.read_bytes()
    pair.issue(hosts=("new.example",))
    assert pair.leaf.read_bytes() != first
    assert greets(pair, "new.example", ca=trusted)
    assert not greets(pair, HOSTS[0], ca=trusted)


def test_an_authority_made_again_from_its_key_is_the_same_authority(pair: Pair) -> None:
    """After the certificate alone was lost: partners keep the copy that they have."""
    trusted = pair.ca.read_bytes()
    pair.ca.write_bytes(certificates.authority(pair.ca_key.read_bytes(), NOW))
    pair.issue()
    assert greets(pair, HOSTS[0], ca=trusted)


def test_another_authority_is_not_trusted_though_it_has_the_same_name(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert not greets(pair, HOSTS[0], ca=Pair(tmp_path / "other").ca.read_bytes())


def test_outside_of_its_dates_a_certificate_is_refused_and_a_slow_clock_is_forgiven(pair: Pair) -> None:
    for days, good in ((-826, False), (-824, True), (1, False)):
        pair.issue(now=NOW + timedelta(days=days))
        assert greets(pair, HOSTS[0]) is good, days
    pair.issue(now=NOW + timedelta(minutes=50))  # our clock is 50 minutes ahead of the partner's
    assert greets(pair, HOSTS[0])


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    long_ago = NOW - timedelta(days=certificates.CA_DAYS - 10)
    pair = Pair(tmp_path, now=long_ago)
    pair.issue()
    assert certificates.validity(pair.leaf).until == certificates.validity(pair.ca).until
    with pytest.raises(ConfigError, match="authority's certificate has ended"):
        pair.issue(now=NOW + timedelta(days=11))


def test_key_and_certificate_are_as_strong_and_as_long_as_promised(pair: Pair) -> None:
    for path, days in ((pair.ca, 3652), (pair.leaf, 825)):
        found = x509.load_pem_x509_certificate(path.read_bytes())
        key = found.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP384R1)
        assert found.signature_hash_algorithm is not None
        assert found.signature_hash_algorithm.name == "sha384"
        assert certificates.validity(path).days_left(NOW) in (days - 1, days)
    constraints = x509.load_pem_x509_certificate(pair.ca.read_bytes()).extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


def test_an_end_is_told_in_time(pair: Pair) -> None:
    validity = certificates.validity(pair.leaf)
    assert validity.names == tuple(sorted({*HOSTS, "localhost", "127.0.0.1", "::1"}))

    def said(days: float) -> str:
        return validity.warning("it", "Renew it.", NOW + timedelta(days=days))

    assert said(0) == said(825 - 31) == ""
    assert "in 29 days" in said(825 - 29.5)
    assert "ended on" in said(826)
    assert "clock" in said(-1)


def test_what_does_not_belong_together_is_told(pair: Pair, tmp_path: Path) -> None:
    certificates.check_pair(pair.leaf, pair.key, issuer=pair.ca)
    (tmp_path / "other").mkdir()
    other = Pair(tmp_path / "other")
    for certificate, key, issuer, said in (
        (pair.leaf, other.key, pair.ca, "was not made for"),
        (pair.leaf, pair.key, other.ca, "was not signed by"),
        (tmp_path / "none", pair.key, pair.ca, "cannot be read"),
        (pair.key, pair.key, pair.ca, "no certificate"),
        (pair.leaf, pair.leaf, pair.ca, "open to others|no EC key"),
    ):
        with pytest.raises(ConfigError, match=said):
            certificates.check_pair(certificate, key, issuer=issuer)
    with pytest.raises(ConfigError, match="does not belong"):
        certificates.leaf(pair.key.read_bytes(), ca_pem=pair.ca.read_bytes(), ca_key_pem=other.ca_key.read_bytes(), hosts=HOSTS, now=NOW)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_may_use_is_refused(pair: Pair, mode: int) -> None:
    pair.key.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        certificates.check_pair(pair.leaf, pair.key)
