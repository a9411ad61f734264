"""The coordinator's home: one folder (0700) with its settings, keys, certificates and everything that runs leave behind.

::

    server.toml          settings, each explained            run.toml       a run configuration to begin with, each key explained
    JOIN.json            an invitation for any new partner   join/          DOMAIN.json for each enrolled one
    ca/ca.crt ca.key     own authority (ten years)           tls/           server.pem server.key (825 days; isthmus-server renew)
    keys/                coordinator.keys: signs contracts   secrets/       superexec: lets the executors of this machine in
    proxy/               nginx.conf, and what nginx needs    partners/      DOMAIN.json, DOMAIN.pub of each enrolled partner
    partners.toml        ceilings and keys, for runs         receipts.json  the last receipt of every domain
    bundles/  runs/  superlink/(state.db, nodes.json)  flower/  logs/  up.json     written by `up` and `run`

Nothing that is there is ever overwritten, but for what follows from ``server.toml``: the proxy's configuration and the cards for partners.
A home that a crash left half made is finished by calling `init` again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shared.commented_toml import commented
from shared.config import RunConfig
from shared.enrolment import JOIN_FILE, JoinCard, PublicHalf
from shared.errors import ConfigError

from . import certificates, proxy
from .contract_key import KEY_FILE, CoordinatorKey
from .nodes import NODES_FILE
from .private_files import check_private, create_file, locked, make_folder, replace_file
from .settings import ServerSettings

SETTINGS_FILE = "server.toml"
_FOLDERS = ("ca", "tls", "keys", "secrets", "proxy", "partners", "join", "bundles", "runs", "superlink", "flower", "logs")
_RUN_HEAD = """A run configuration to begin with: every key with its default. Partners compare it with what they agreed to.
The noise is solved from epsilon when a run starts. `isthmus-server run` takes this file, or another one like it."""
_RENEW = "Run isthmus-server renew."
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What `Home.create` did.

    Args:
        home: the finished home.
        new: files that were not there before, as paths inside the home.
        kept: files that were there and stayed as they were.
    """

    home: Home
    new: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where everything is. Made by `create` or `open`.

    Args:
        root: absolute path of the folder.
        settings: from ``server.toml``.
    """

    root: Path
    settings: ServerSettings

    @classmethod
    def create(cls, root: Path, settings: ServerSettings, *, now: datetime | None = None) -> Made:
        """Makes a home, or finishes one; every file that is there stays.

        Args:
            settings: for a new home; one that is there has to have the same.
        Raises:
            ConfigError: the folder holds something else, or is the home of another server, or something in it cannot be used.
            StorageError: no space left, or the folder cannot be written.
        """
        root = Path(os.path.abspath(root))
        place = root / SETTINGS_FILE
        if not place.exists():
            _check_empty(root)
        make_folder(root)
        check_private(root, "it is going to hold private keys")
        with locked(root):
            new: list[str] = []
            kept: list[str] = []

            def note(path: Path, made: bool) -> None:
                (new if made else kept).append(str(path.relative_to(root)))

            note(place, create_file(place, settings.to_toml().encode()))  # first: it tells a half-made home from a strange folder
            home = cls(root=root, settings=ServerSettings.read(place))
            home._finish(note, now or datetime.now(UTC))
        return Made(home=home, new=tuple(new), kept=tuple(kept))

    @classmethod
    def open(cls, root: Path) -> Home:
        """Opens a finished home; looks at permissions and whether keys and certificates belong together, not at dates.

        Raises:
            ConfigError: something is missing or cannot be used, with what to do.
        """
        root = Path(os.path.abspath(root))
        if not (root / SETTINGS_FILE).exists():
            raise ConfigError(f"{root} is no coordinator's home", do="isthmus-server init FOLDER --host NAME makes one.")
        check_private(root, "it holds private keys")
        home = cls(root=root, settings=ServerSettings.read(root / SETTINGS_FILE))
        for path in (home.run_file, home.proxy_file, home.invitation, *(root / name for name in _FOLDERS)):
            if not path.exists():
                raise ConfigError(
                    f"{path} is missing: the home is half made", do="Run isthmus-server init again: it makes what is missing."
                )
        certificates.check_pair(home.certificate, home.certificate_key, issuer=home.ca)
        if home.ca_key.exists():
            certificates.check_pair(home.ca, home.ca_key)
        home._check_secret()
        home.coordinator_key()
        return home

    def _finish(self, note: Callable[[Path, bool], None], now: datetime) -> None:
        for name in _FOLDERS:
            make_folder(self.root / name)
        if not self.coordinator_keys.exists():
            CoordinatorKey.create(self.coordinator_keys)
            note(self.coordinator_keys, True)
        else:
            note(self.coordinator_keys, False)
        note(self.superexec_secret, create_file(self.superexec_secret, os.urandom(_SECRET_BYTES)))
        note(self.run_file, create_file(self.run_file, commented(RunConfig(name="first"), _RUN_HEAD).encode()))
        if self.ca.exists():  # then its key may lie elsewhere, out of reach of whoever gets into this machine
            note(self.ca, False)
        else:
            note(self.ca_key, create_file(self.ca_key, certificates.new_key()))
            check_private(self.ca_key, "whoever has it can pass for the coordinator")
            note(self.ca, create_file(self.ca, certificates.authority(self.ca_key.read_bytes(), now)))
        note(self.certificate_key, create_file(self.certificate_key, certificates.new_key()))
        if not self.certificate.exists():
            create_file(self.certificate, self.new_certificate(now=now))
            note(self.certificate, True)
        else:
            note(self.certificate, False)
        certificates.check_pair(self.certificate, self.certificate_key, issuer=self.ca)
        self._check_secret()
        self.write_derived()

    def write_derived(self) -> None:
        """Writes what follows from ``server.toml`` and the keys: the proxy's configuration and the invitation.

        Raises:
            StorageError: no space left, or the folder cannot be written.
        """
        replace_file(self.proxy_file, proxy.configuration(self.settings).encode())
        replace_file(self.invitation, self.join_card().to_json().encode())

    def join_card(self, domain: str | None = None, partners: tuple[PublicHalf, ...] = ()) -> JoinCard:
        """What a partner is told; without a domain, the invitation.

        Raises:
            DataError: naming what cannot be written into a card.
        """
        return JoinCard.signed(
            self.coordinator_key(), server=self.settings.address, ca_pem=self.ca.read_text("ascii"), domain=domain, partners=partners
        )

    def new_certificate(self, *, now: datetime, key_pem: bytes | None = None) -> bytes:
        """A certificate of the server, in PEM, by the home's authority.

        Args:
            key_pem: the key it is for; by default the one that is there.
        Raises:
            ConfigError: the authority's key is not here, or open to others, or not its own.
        """
        if not self.ca_key.exists():
            raise ConfigError(
                f"{self.ca_key} is not here, and only with it can a certificate be made",
                do="Bring it back for as long as this takes. If it is lost, make a new home; every partner joins again.",
            )
        check_private(self.ca_key, "whoever has it can pass for the coordinator")
        return certificates.leaf(
            key_pem or self.certificate_key.read_bytes(),
            ca_pem=self.ca.read_bytes(),
            ca_key_pem=self.ca_key.read_bytes(),
            hosts=self.settings.host_names,
            now=now,
        )

    def warnings(self, now: datetime | None = None) -> tuple[str, ...]:
        """What about certificates and settings needs somebody soon, a line each."""
        now = now or datetime.now(UTC)
        leaf = certificates.validity(self.certificate)
        said = [
            leaf.warning("the server's certificate", _RENEW, now),
            certificates.validity(self.ca).warning("the authority's certificate", "Make a new home before; every partner joins it.", now),
        ]
        if missing := [host for host in self.settings.host_names if host.lower() not in {name.lower() for name in leaf.names}]:
            said.append(f"the server's certificate is not for {', '.join(missing)}. {_RENEW}")
        if self.proxy_file.exists() and self.proxy_file.read_text("utf-8") != proxy.configuration(self.settings):
            said.append("the proxy's configuration is not what server.toml says. Run isthmus-server init on this home.")
        return tuple(filter(None, said))

    def coordinator_key(self) -> CoordinatorKey:
        """The key that signs run contracts.

        Raises:
            ConfigError: it is missing, damaged, or open to others.
        """
        return CoordinatorKey.load(self.coordinator_keys)

    def _check_secret(self) -> None:
        check_private(self.superexec_secret, "whoever has it gets the code and the state of every run")
        if self.superexec_secret.stat().st_size != _SECRET_BYTES:
            raise ConfigError(
                f"{self.superexec_secret} does not hold {_SECRET_BYTES} bytes", do="Delete it and run isthmus-server init again."
            )

    @property
    def settings_file(self) -> Path:
        return self.root / SETTINGS_FILE

    @property
    def run_file(self) -> Path:
        """The run configuration to begin with."""
        return self.root / self.settings.run

    @property
    def invitation(self) -> Path:
        return self.root / JOIN_FILE

    @property
    def ca(self) -> Path:
        return self.root / "ca" / "ca.crt"

    @property
    def ca_key(self) -> Path:
        return self.root / "ca" / "ca.key"

    @property
    def certificate(self) -> Path:
        return self.root / "tls" / "server.pem"

    @property
    def certificate_key(self) -> Path:
        return self.root / "tls" / "server.key"

    @property
    def coordinator_keys(self) -> Path:
        return self.root / "keys" / KEY_FILE

    @property
    def superexec_secret(self) -> Path:
        return self.root / "secrets" / "superexec"

    @property
    def proxy_file(self) -> Path:
        return self.root / "proxy" / "nginx.conf"

    @property
    def partners(self) -> Path:
        """Folder of the enrolled partners' cards and node keys."""
        return self.root / "partners"

    @property
    def partners_file(self) -> Path:
        """Ceilings and keys as `server.partners` reads them."""
        return self.root / "partners.toml"

    @property
    def join(self) -> Path:
        """Folder of the cards for enrolled partners."""
        return self.root / "join"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def receipts(self) -> Path:
        return self.root / "receipts.json"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def superlink_state(self) -> Path:
        """SQLite file of the SuperLink."""
        return self.root / "superlink" / "state.db"

    @property
    def nodes_file(self) -> Path:
        """Which node is whose, see `server.nodes`."""
        return self.superlink_state.with_name(NODES_FILE)

    @property
    def flower(self) -> Path:
        """FLWR_HOME of whatever of Flower runs here."""
        return self.root / "flower"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def up_file(self) -> Path:
        """What runs at present, while `up` is up."""
        return self.root / "up.json"


def _check_empty(root: Path) -> None:
    """Only an empty folder becomes a home; what a crashed first second left (the settings' hidden part) counts as empty."""
    if not root.exists():
        return
    if not root.is_dir():
        raise ConfigError(f"{root} is not a folder", do="Name a folder that does not exist yet.")
    strange = [name for name in os.listdir(root) if name != ".lock" and not name.startswith(f".{SETTINGS_FILE}.")]
    if strange:
        raise ConfigError(
            f"{root} is not empty, and no coordinator's home",
            do=f"Name a folder that does not exist yet. If it was a home, restore {SETTINGS_FILE}.",
        )
