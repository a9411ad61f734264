"""``server.toml``: how partners reach the coordinator, and what it takes from them."""

from __future__ import annotations

import ipaddress
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from shared.addresses import is_host, join_address
from shared.commented_toml import commented
from shared.config import build, check, setting
from shared.errors import ConfigError

_HEAD = """The coordinator's settings. Every key is here; unknown keys are refused by name.
After a change of hosts run `isthmus-server renew`, after any other change `isthmus-server init` on this folder, which writes the files that
follow from it anew; then start `isthmus-server up` again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentSettings:
    """What a partner's card has to keep to be enrolled."""

    max_ceiling_epsilon: float = setting(20.0, "largest ceiling of a domain that this coordinator works with", low=1e-3, high=1e6)
    delta: float = setting(1e-6, "delta of every partner's ceiling; runs have to use the same", low=1e-12, high=1e-2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """What the proxy lets through. The limits count per address, so several partners behind one address share them."""

    requests_per_s: int = setting(100, "requests of one address in the long run", low=1, high=100_000)
    burst: int = setting(400, "requests of one address at once beyond that", low=0, high=100_000)
    connections: int = setting(64, "connections of one address at a time", low=1, high=10_000)
    body_mib: int = setting(16, "largest request; Flower cuts arrays into pieces of 5 MiB", unit="MiB", low=6, high=2048)
    wait_s: int = setting(60, "longest wait for an answer of the SuperLink", unit="s", low=5, high=3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """One coordinator."""

    hosts: str = setting("", "names and addresses of this server, with commas; partners are told the first, the certificate is for all")
    port: int = setting(8443, "where partners connect: the proxy", low=1, high=65_535)
    listen: str = setting("0.0.0.0", "addresses of this machine that the proxy listens on, with commas")
    superlink_port: int = setting(9443, "the SuperLink's port on 127.0.0.1, where whoever reaches it may start runs", low=1, high=65_535)
    run: str = setting("run.toml", "run configuration that isthmus-server run takes where none is named; relative to this file")
    enrolment: EnrolmentSettings = field(default_factory=EnrolmentSettings)
    proxy: ProxySettings = field(default_factory=ProxySettings)

    def __post_init__(self) -> None:
        check(self)
        if not self.host_names or not all(map(is_host, self.host_names)):
            raise ConfigError("'hosts' holds something that is no host name and no address", do="Write isthmus.example.org, or 192.0.2.7.")
        if not self.listens_on or not all(map(_is_ip, self.listens_on)):
            raise ConfigError("'listen' holds something that is no address of a machine", do="Write 0.0.0.0, or 0.0.0.0,:: for both kinds.")
        if self.port == self.superlink_port:
            raise ConfigError("'port' and 'superlink_port' are the same", do="The proxy and the SuperLink need a port each.")

    @classmethod
    def read(cls, path: Path) -> ServerSettings:
        """Reads ``server.toml``.

        Raises:
            ConfigError: naming the key that is unknown or out of range.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror})", do="isthmus-server init makes a home.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}", do="Correct it, or restore it from a copy.") from None
        settings: ServerSettings = build(cls, values, "")
        return settings

    def to_toml(self) -> str:
        """Every key, explained."""
        return commented(self, _HEAD)

    @property
    def host_names(self) -> tuple[str, ...]:
        return _listed(self.hosts)

    @property
    def listens_on(self) -> tuple[str, ...]:
        return _listed(self.listen)

    @property
    def address(self) -> str:
        """``HOST:PORT`` that partners are told."""
        return join_address(self.host_names[0], self.port)

    @property
    def superlink_address(self) -> str:
        """``HOST:PORT`` of the SuperLink; on this machine only."""
        return f"127.0.0.1:{self.superlink_port}"


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text
