"""A partner's own settings: ``partner.toml``. Where the data lie, what may be spent, what may be sent. Never sent to anyone.

Paths are relative to the file itself. ``home`` holds what isthmus keeps for this domain::

    home/
      keys/           pseudonym, signing and sealing keys, and the key of the node (0600)
      prepared/       histories, text vectors and coordinates as arrays
      state/          training state: DP-trained only
      serving/        serving head: fitted on exact data, never read by training
      released/       bytes of DP releases, so that asking again gives the same
      passports/      sealed files: outbox and inbox, and the public keys of partners
      ledger.sqlite   what was spent, for life
      register.sqlite passports, links and the keyed marks of the forgotten; local, never handed over
      egress.jsonl    one line for each message that left
      allowed.json    the bundles that may run, and who decided so
      refused.jsonl   one line for each bundle that was refused
      server-ca.crt   certificate of the coordinator's authority
      logs/           what the node says
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from shared.addresses import is_address
from shared.config import RunConfig, build, check, setting
from shared.errors import ConfigError, Refusal
from shared.ranges import outside

from .agreed import AgreedRanges as AgreedRanges
from .data.database import check_settings

DATABASE_KEYS = (
    "url",
    "password_env",
    "password_file",
    "items_query",
    "interactions_query",
    "links_query",
    "connect_timeout_s",
    "statement_timeout_s",
)
"""Keys of `DataSettings` that say where a database is and how to reach it."""

OPENING = "The settings of one domain at one partner."
"""How the file begins that `init` writes, and the table that is its last."""
LAST_TABLE = "passports"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """The partner's files, or the tables of a database."""

    items: str = setting("items.csv", "catalogue: item id and its public texts")
    interactions: str = setting("interactions.csv", "interactions: user id, item id, time, perhaps a rating")
    links: str = setting("", "links: user id, partner, link id; empty = nobody linked accounts")
    time: str = setting("unix_s", "what the time column holds", choices=("unix_s", "order"))
    user_column: str = setting("user_id", "column of the interactions and of the links")
    item_column: str = setting("item_id", "column of both files")
    time_column: str = setting("timestamp", "column of the interactions")
    rating_column: str = setting("", "column of the interactions; empty = ratings are not read")
    text_columns: str = setting("title,categories", "columns of the catalogue that make an item's text, in order")
    unknown_items: str = setting("refuse", "interactions with items that the catalogue lacks", choices=("refuse", "drop"))
    url: str = setting("", "a database instead of files, without a password; items, interactions and links then name its tables")
    password_env: str = setting("", "environment variable that holds the database's password")
    password_file: str = setting("", "file (0600) that holds it")
    items_query: str = setting("", "one SELECT instead of the table 'items'")
    interactions_query: str = setting("", "one SELECT instead of the table 'interactions'")
    links_query: str = setting("", "one SELECT instead of the table 'links'")
    connect_timeout_s: float = setting(10.0, "longest wait for the database to connect", unit="s", low=1.0, high=600.0)
    statement_timeout_s: float = setting(600.0, "longest wait for it to answer, or to send on", unit="s", low=0.1, high=86_400.0)

    def check_database(self) -> None:
        """Raises ConfigError for what is wrong with the keys of a database before anybody connects; a password in the URL is."""
        queries = {name: getattr(self, name) for name in ("items_query", "interactions_query", "links_query")}
        check_settings(url=self.url, password_env=self.password_env, password_file=self.password_file, queries=queries)


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingSettings:
    """What this domain may ever spend on one user. Written into the ledger when it is made."""

    epsilon: float = setting(8.0, "ceiling for the domain's whole life", low=1e-3)
    delta: float = setting(1e-6, "delta of the ceiling and of every statement", low=1e-12, high=1e-2)
    set_by: str = setting("partner", "who decided")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The coordinator this domain works with. Empty in simulations, where nobody signs."""

    address: str = setting("", "HOST:PORT of the coordinator's server")
    coordinator_key: str = setting("", "public key of the coordinator, 32 bytes in hex; runs that it did not sign are refused")
    ca: str = setting("", "certificate of the coordinator's own authority; empty = home/server-ca.crt")
    node_key: str = setting("", "the node's private key, ECDSA P-384 in OpenSSH's form; empty = home/keys/node")
    port: int = setting(0, "port on this machine's loopback for the node's own processes; 0 = a free one at each start", low=0, high=65_535)
    longest_retry_s: float = setting(60.0, "longest pause before the node is started again", unit="s", low=1.0, high=3600.0)
    deadline_s: float = setting(
        0.0, "longest time for one message; 0 = as long as the run's round_timeout_s permits", unit="s", low=0.0, high=86_400.0
    )

    def __post_init__(self) -> None:
        if self.coordinator_key and re.fullmatch(r"[0-9a-f]{64}", self.coordinator_key) is None:
            raise ConfigError("'server.coordinator_key' is not 32 bytes in small hex", do="Take it from the coordinator's JOIN.json.")
        if self.address and not is_address(self.address):
            raise ConfigError("'server.address' is not HOST:PORT", do="Take it from the coordinator's JOIN.json.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentSettings:
    """What beyond updates this domain sends. All of it comes from the public catalogue."""

    catalogue_moments: bool = setting(True, "moments of the catalogue's text vectors")
    catalogue_centroids: bool = setting(True, "centroids of the catalogue")
    catalogue_descriptor: bool = setting(True, "mean coordinate of the catalogue")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassportSettings:
    """How passports travel: as sealed files, from partner to partner; by hand, or to a partner's own server."""

    outbox: str = setting("passports/outbox", "where exported files are put")
    inbox: str = setting("passports/inbox", "where files of partners are found")
    partners: str = setting("passports/partners", "public keys of partners, one JSON file each")
    mode: str = setting(
        "exact",
        "what a passport shows its target: the interest itself, by consent, or one noisy direction for life",
        choices=("exact", "private"),
    )
    epsilon_u: float = setting(
        8.0, "local differential privacy of a private passport, booked once for each person; fixed by the first one", low=0.1, high=32.0
    )
    private_dimensions: int = setting(
        16, "public coordinates of a private passport; fixed by the first one", unit="dimensions", low=2, high=32
    )
    valid_days: int = setting(180, "days until a passport expires", unit="days", low=1, high=3650)
    automatic: bool = setting(False, "export when the interest space is fixed and import before the first round; otherwise by command")
    address: str = setting("", "HOST:PORT at which partners deliver; it goes into the public keys; empty = files are handed over")
    listen: str = setting("", "HOST:PORT at which 'passport serve' listens")
    certificate: str = setting("", "certificate of that server, PEM; empty = one of its own in home/keys")
    key: str = setting("", "private key (0600) of that certificate, PEM")

    def __post_init__(self) -> None:
        for name in ("address", "listen"):
            if (value := getattr(self, name)) and not is_address(value):
                raise ConfigError(f"'passports.{name}' is not HOST:PORT", do="An address of IPv6 stands in brackets: [::1]:8444.")
        if bool(self.certificate) != bool(self.key):
            raise ConfigError("'passports.certificate' and 'passports.key' are set together, or neither is")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSettings:
    """Set in benchmarks only: people held out of training, so that a result can be measured."""

    split_seed: int = setting(-1, "names the division of people (contracts.md); -1 = nobody is held out", low=-1, high=2**31 - 1)
    hold_out_last: bool = setting(False, "keep the latest item of each training user for the warm evaluation")
    cut_s: int = setting(0, "keep everything from this moment on for the evaluation; 0 = no cut", unit="unix seconds", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """One domain at one partner."""

    domain: str = setting("", "name of the domain: small letters, digits, '-' and '_'")
    home: str = setting("home", "folder for keys, state and the ledger")
    ledger: str = setting("", "the ledger; empty = home/ledger.sqlite")
    text_model: str = setting("builtin", "'builtin' or a local folder of a language model")
    text_precision: str = setting(
        "float32", "'int8' encodes texts faster and a little differently; needs the extra onnx", choices=("float32", "int8")
    )
    text_cache: str = setting("", "cache of text vectors; empty = home/prepared/text")
    data: DataSettings = field(default_factory=DataSettings)
    ceiling: CeilingSettings = field(default_factory=CeilingSettings)
    agreed: AgreedRanges = field(default_factory=AgreedRanges)
    server: ServerSettings = field(default_factory=ServerSettings)
    consent: ConsentSettings = field(default_factory=ConsentSettings)
    passports: PassportSettings = field(default_factory=PassportSettings)
    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    base: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        check(self)
        self.data.check_database()
        if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", self.domain) is None:
            what = "'domain' is a name of at most 64 small letters, digits, '-' and '_' that begins with a letter or a digit"
            raise ConfigError(what, do="Name the domain in partner.toml.")

    @classmethod
    def read(cls, path: Path) -> ClientSettings:
        """Reads ``partner.toml``.

        Raises:
            ConfigError: naming the key that is unknown or out of range; or a file that `init` wrote was cut off since.
        """
        try:
            text = path.read_text(encoding="utf-8")
            values = tomllib.loads(text)
        except FileNotFoundError:
            raise ConfigError(f"there is no settings file {path}", do="Name the partner.toml of this domain.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            do = "Mend the line, or restore the file from a copy."
            raise ConfigError(f"{path.name} is not TOML: {error}", do=do) from None
        if text.startswith(f"# {OPENING}") and LAST_TABLE not in values:  # what is missing would count as left at its default
            do = f"Restore it from a copy. If the table was taken out on purpose, write [{LAST_TABLE}] at the end of the file."
            raise ConfigError(f"{path.name} is cut off: the table [{LAST_TABLE}], with which it ended, is not there", do=do)
        settings: ClientSettings = build(cls, values, "")
        return dataclasses.replace(settings, base=path.resolve().parent)

    def write(self, path: Path) -> None:
        """Writes all settings; reading the file back gives an equal record."""
        values = dataclasses.asdict(self)
        del values["base"]
        path.write_text(tomli_w.dumps(values), encoding="utf-8")

    def path(self, name: str) -> Path:
        """A path of the settings file, made absolute."""
        return (self.base / name).absolute()

    def at_home(self, name: str) -> Path:
        """A path inside ``home``."""
        return self.path(self.home) / name

    @property
    def ledger_path(self) -> Path:
        return self.path(self.ledger) if self.ledger else self.at_home("ledger.sqlite")

    @property
    def ca_path(self) -> Path:
        return self.path(self.server.ca) if self.server.ca else self.at_home("server-ca.crt")

    @property
    def node_key_path(self) -> Path:
        return self.path(self.server.node_key) if self.server.node_key else self.at_home("keys/node")

    @property
    def text_cache_path(self) -> Path:
        return self.path(self.text_cache) if self.text_cache else self.at_home("prepared/text")

    def admit(self, config: RunConfig) -> None:
        """Checks a run configuration against what was agreed, before any data are opened.

        Raises:
            Refusal: code ``range``, with the reason for the partner's own eyes.
        """
        wrong = "; ".join(outside(config, self.agreed, self.ceiling.delta))
        if wrong:
            raise Refusal(
                "range",
                f"run '{config.name}' refused by domain '{self.domain}': {wrong}",
                do="Agree on other ranges in partner.toml, or ask the coordinator for another configuration.",
            )
