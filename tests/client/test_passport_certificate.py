"""The certificate of a partner's own server: made once, checked before it is shown."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509

from client.passport_certificate import identity, name_in
from client.settings import ClientSettings, PassportSettings
from shared.errors import ConfigError
from tests.client.passport_office import certificate, partner


def chosen(root: Path, chain: bytes, key: bytes) -> ClientSettings:
    """A domain that was told to show this certificate."""
    root.mkdir(exist_ok=True)
    ClientSettings(domain="films", passports=PassportSettings(certificate="films.crt", key="films.key")).write(root / "partner.toml")
    (root / "films.crt").write_bytes(chain)
    (root / "films.key").write_bytes(key)
    (root / "films.key").chmod(0o600)
    return ClientSettings.read(root / "partner.toml")


@pytest.mark.parametrize("host", ["films.example", "192.0.2.7", "[2001:db8::7]"])
def test_a_certificate_is_made_once_for_the_address_and_its_key_belongs_to_its_owner(tmp_path: Path, host: str) -> None:
    films = partner(tmp_path, "films", address=f"{host}:8444")

    first = identity(films)

    assert identity(films) == first
    assert name_in(first.leaf) == host.strip("[]")
    (file,) = films.at_home("keys").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "films" not in x509.load_pem_x509_certificate(first.leaf.encode()).subject.rfc4514_string()  # it travels in the clear


def test_a_domain_without_an_address_is_told_to_set_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'passports\.address' is not set"):
        identity(partner(tmp_path, "films"))


def test_a_certificate_of_ones_own_choice_is_shown_whole(tmp_path: Path) -> None:
    (one, key), (issuer, _) = certificate(), certificate("authority.example")

    shown = identity(chosen(tmp_path, one + issuer, key))

    assert shown.chain == one + issuer
    assert shown.leaf.encode() == one


def test_what_cannot_be_shown_is_refused_by_name(tmp_path: Path) -> None:
    (one, key), (_, other) = certificate(), certificate()
    wrong = {
        "films.key is not the key of films.crt": (one, other),
        "the certificate in films.crt ended on": certificate(begins=-9, ends=-1),
        "the certificate in films.crt begins on": certificate(begins=2, ends=9),
        "a certificate that names a host": certificate(named=False),
        "and its private key without a password": (one, key.replace(b"PRIVATE", b"ENCRYPTED PRIVATE")),
        "films.crt and films.key are not": (b"\xff", b"\0"),
    }
    for says, (chain, secret) in wrong.items():
        with pytest.raises(ConfigError, match=says):
            identity(chosen(tmp_path, chain, secret))


def test_a_key_that_others_can_read_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    films = chosen(tmp_path, *certificate())
    (tmp_path / "films.key").chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        identity(films)
    (tmp_path / "films.key").unlink()
    with pytest.raises(ConfigError, match=r"films\.key cannot be read"):
        identity(films)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"address": "films.example"}, "'passports.address' is not HOST:PORT"),
        ({"listen": ":8444"}, "'passports.listen' is not HOST:PORT"),
        ({"certificate": "films.crt"}, "are set together"),
        ({"key": "films.key"}, "are set together"),
    ],
)
def test_settings_of_a_server_that_cannot_be_are_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PassportSettings(**given)
