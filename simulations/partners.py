"""Homes for the simulated partners: settings, keys, links and a ledger for each domain, as a real partner would have them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from client.data.links import LinkColumns
from client.data.split import TRAIN, role
from client.durable_files import write_file
from client.key_rotation import own_keys
from client.keys import KEY_FILE, Keys
from client.settings import (
    AgreedRanges,
    BenchmarkSettings,
    CeilingSettings,
    ClientSettings,
    DataSettings,
    PassportSettings,
)
from shared.errors import ConfigError, DataError, LedgerError, UsageError
from shared.privacy.ledger import Ledger

from .run_folder import RunFolder
from .scenario_config import DataConfig, Scenario

CACHE_VARIABLE = "ISTHMUS_CACHE"
DATA_VARIABLE = "ISTHMUS_DATA"


def text_cache() -> Path:
    """Where text vectors are kept between runs: ``ISTHMUS_CACHE``, or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isthmus"
    return base.absolute() / "text"


def data_folders(scenario: Scenario, data: Path | None) -> dict[str, Path]:
    """Domain -> folder with ``items.csv`` and ``interactions.csv``, for a scenario that reads a folder.

    Raises:
        UsageError: no data folder was named.
        DataError: the folder or a domain in it is missing.
    """
    base = data if data is not None else Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None
    if base is None:
        raise UsageError(
            f"scenario '{scenario.run.name}' reads data, and no data folder was named", do=f"Use --data FOLDER, or set {DATA_VARIABLE}."
        )
    folder = base / scenario.data.set
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}", do=f"--data (or {DATA_VARIABLE}) names the folder that holds '{scenario.data.set}'."
        )
    named = [name.strip() for name in scenario.data.domains.split(",") if name.strip()]
    domains = named or sorted(path.name for path in folder.iterdir() if path.is_dir())
    for domain in domains:
        for name in ("items.csv", "interactions.csv"):
            if not (folder / domain / name).is_file():
                raise DataError(
                    f"domain '{domain}': there is no file {folder / domain / name}", do="Each domain has items.csv and interactions.csv."
                )
    return {domain: (folder / domain).absolute() for domain in sorted(domains)}


def settle(
    folder: RunFolder, scenario: Scenario, sources: dict[str, Path], *, split_seed: int, ledgers: Path | None
) -> list[ClientSettings]:
    """Makes a home for each domain: settings, links, keys, and a ledger where there is none yet.

    Args:
        folder: of the run.
        sources: domain -> folder of its files.
        split_seed: names who is held out.
        ledgers: folder of ledgers that outlive this run; None for throw-away ones in the run folder.
    Returns:
        The settings, sorted by domain: the order of Flower's partition ids.
    Raises:
        ConfigError: a temporal split was asked for, and the data have no real times.
        DataError: all that happened, happened at one moment.
    """
    interactions = {domain: path / "interactions.csv" for domain, path in sources.items()}
    held_back = BenchmarkSettings(split_seed=split_seed, hold_out_last=True)
    if scenario.data.split == "temporal":
        held_back = BenchmarkSettings(split_seed=split_seed, cut_s=cut_of(interactions, scenario.data))
    links = linked(interactions, most=scenario.data.linked_users, split_seed=split_seed)
    post = folder.clients / ".post"
    post.mkdir(exist_ok=True)
    settled = []
    for domain, source in sorted(sources.items()):
        home = folder.client(domain)
        home.mkdir(parents=True, exist_ok=True)
        links[domain].write_csv(home / "links.csv")
        ledger = (ledgers or folder.ledgers).absolute() / f"{domain}.sqlite"
        settings = ClientSettings(
            domain=domain,
            home="home",
            ledger=str(ledger),
            text_cache=str(text_cache()),
            data=DataSettings(
                items=str(source / "items.csv"),
                interactions=str(source / "interactions.csv"),
                links="links.csv",
                time=scenario.data.time,
                unknown_items=scenario.data.unknown_items,
                rating_column=scenario.data.ratings,
            ),
            ceiling=CeilingSettings(epsilon=scenario.ceiling_epsilon, delta=scenario.run.privacy.delta, set_by="simulation"),
            agreed=AgreedRanges.widest(test_builds=not scenario.run.privacy.private),
            passports=PassportSettings(outbox=str(post.absolute()), inbox=str(post.absolute()), automatic=True),
            benchmark=held_back,
            base=home.absolute(),
        )
        settings.write(home / "partner.toml")
        if ledgers is not None:
            _keep_keys(settings, ledgers.absolute() / "keys" / domain)
        make_ledger(settings, private=scenario.run.privacy.private)
        if not scenario.run.privacy.private:
            _name_pseudonym_key(settings, scenario.run.seed)
        settled.append(settings)
    _introduce(settled)
    return settled


def cut_of(interactions: Mapping[str, Path], data: DataConfig) -> int:
    """The moment, in unix seconds, before which a share of the interactions of all domains happened.

    Raises:
        ConfigError: the time column holds an order only.
        DataError: no moment divides them.
    """
    if data.time != "unix_s":
        raise ConfigError("'data.split' is temporal, and 'data.time' says that times are an order only", do="Split by person.")
    times = [_times(path) for path in interactions.values()]
    pooled = np.sort(np.concatenate(times)) if times else np.zeros(0, dtype=np.int64)
    cut = int(pooled[int(data.before_cut * len(pooled))]) if len(pooled) else 0
    if len(pooled) == 0 or cut == pooled[0]:
        raise DataError("no moment divides the interactions into earlier and later ones", do="Split by person.")
    return cut


def _times(path: Path) -> np.ndarray:
    """(n,) int64; none where the file cannot be read, because the partner's own check says what is wrong with it."""
    try:
        column = pl.read_csv(path, columns=["timestamp"], schema_overrides={"timestamp": pl.String}).get_column("timestamp")
        return column.cast(pl.Int64, strict=False).drop_nulls().to_numpy()
    except (pl.exceptions.PolarsError, OSError):
        return np.zeros(0, dtype=np.int64)


def settings_of(folder: RunFolder) -> list[ClientSettings]:
    """The settings of a folder that was settled before, sorted by domain."""
    return [ClientSettings.read(path / "partner.toml") for path in sorted(folder.clients.iterdir()) if (path / "partner.toml").is_file()]


def make_ledger(settings: ClientSettings, *, private: bool) -> None:
    """Creates the domain's ledger where there is none; one of an older format goes on in this one."""
    path, keys = settings.ledger_path, own_keys(settings)
    if path.is_file():
        try:
            Ledger.upgrade(path, signer=keys, why="a simulation goes on with this ledger")
        except LedgerError as error:
            raise type(error)(f"domain '{settings.domain}': {error.what}", do=error.do) from None
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        ceiling = settings.ceiling
        Ledger.create(
            path,
            signer=keys,
            domain=settings.domain,
            ceiling_epsilon=ceiling.epsilon,
            delta=ceiling.delta,
            set_by=ceiling.set_by,
            private=private,
        ).close()


def _keep_keys(settings: ClientSettings, kept: Path) -> None:
    """A ledger that outlives a run is signed with a key that does too."""
    Keys.load_or_create(kept)  # a folder without settings: nothing rotates the keys there
    write_file(settings.at_home("keys") / KEY_FILE, (kept / KEY_FILE).read_bytes())


def twin(settings: ClientSettings, home: Path, ledger: Path) -> ClientSettings:
    """A second home of the same domain for a control: the same prepared data, keys and passports; a state and a ledger of its own."""
    new = home / "home"
    new.mkdir(parents=True, exist_ok=True)
    (new / "prepared").symlink_to(settings.at_home("prepared"), target_is_directory=True)
    shutil.copytree(settings.at_home("keys"), new / "keys")
    if settings.at_home("register.sqlite").is_file():
        shutil.copy2(settings.at_home("register.sqlite"), new / "register.sqlite")
    copied = dataclasses.replace(
        settings,
        base=home.absolute(),
        ledger=str(ledger.absolute()),
        data=dataclasses.replace(settings.data, links=str(settings.path(settings.data.links))),
        passports=dataclasses.replace(settings.passports, automatic=False),
    )
    copied.write(home / "partner.toml")
    return copied


def forget_prepared(settings: Sequence[ClientSettings]) -> None:
    """Deletes what can be made again from the partners' files: a run folder stays small.

    Interest spaces stay: no file of a partner brings them back, and nothing can be recommended without them.
    """
    for each in settings:
        prepared = each.at_home("prepared")
        if prepared.is_symlink():  # of a twin
            prepared.unlink()
        elif prepared.is_dir():
            for folder in prepared.iterdir():
                if folder.name != "spaces":
                    shutil.rmtree(folder, ignore_errors=True)


def _name_pseudonym_key(settings: ClientSettings, seed: int) -> None:
    """A test build's key follows from its seed: pseudonyms decide the order of users, and with it what a named generator draws."""
    key = hashlib.sha256(f"isthmus test build {seed}/{settings.domain}".encode()).digest()
    write_file(settings.at_home("keys") / "pseudonyms.key", key)


def _introduce(settings: Sequence[ClientSettings]) -> None:
    """Every partner gets the public keys of every other, as files."""
    for one in settings:
        public = own_keys(one).public(one.domain).to_json()
        for other in settings:
            if other.domain != one.domain:
                folder = other.path(other.passports.partners)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{one.domain}.json").write_text(public, encoding="utf-8")


def linked(interactions: dict[str, Path], *, most: int = 0, split_seed: int = 0) -> dict[str, pl.DataFrame]:
    """Who is linked: a user id that two domains of a set share is one person. The link id is a token that both sides hold.

    Args:
        interactions: domain -> file.
        most: linked training users of each pair of domains; further ones become users of one domain only. 0 = no such bound. People who
            are held out stay linked, so that figures with few and with many linked users are about the same people.
        split_seed: names who is held out.
    """
    users = {}
    for domain, path in interactions.items():
        try:
            users[domain] = (
                pl.read_csv(path, columns=["user_id"], schema_overrides={"user_id": pl.String}).get_column("user_id").drop_nulls().unique()
            )
        except (pl.exceptions.PolarsError, OSError):
            users[domain] = pl.Series("user_id", [], dtype=pl.String)  # the partner's own check says what is wrong with the file
    columns = LinkColumns()
    tables = {}
    for domain, mine in users.items():
        parts = []
        for partner, theirs in users.items():
            if partner != domain:
                both = mine.filter(mine.is_in(theirs.implode())).sort()
                tokens = [hashlib.sha256(f"isthmus link {user}".encode()).hexdigest()[:32] for user in both.to_list()]
                if most:
                    stays = _staying(tokens, most, split_seed)
                    both, tokens = (
                        both.filter(pl.Series(stays, dtype=pl.Boolean)),
                        [token for token, stay in zip(tokens, stays, strict=True) if stay],
                    )
                parts.append(
                    pl.DataFrame(
                        {columns.user: both, columns.partner: [partner] * len(both), columns.link: tokens},
                        schema=dict.fromkeys((columns.user, columns.partner, columns.link), pl.String),
                    )
                )
        tables[domain] = (
            pl.concat(parts) if parts else pl.DataFrame(schema=dict.fromkeys((columns.user, columns.partner, columns.link), pl.String))
        )
    return tables


def _staying(tokens: list[str], most: int, split_seed: int) -> list[bool]:
    """Whether each link stays where only so many training users may be linked; the first by token, which is as good as by chance."""
    roles = role(tokens, split_seed)
    train = sorted(token for token, part in zip(tokens, roles, strict=True) if part == TRAIN)
    chosen = set(train[:most])
    return [part != TRAIN or token in chosen for token, part in zip(tokens, roles, strict=True)]
