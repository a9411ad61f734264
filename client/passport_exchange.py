"""Passports of this domain's users on their way out and in: whose, made of what, put where.

An exact passport is the interest itself, of everybody whose history is long enough. A private one is a draw for life
(`client.private_passports`), and everybody who is linked gets one: who gets none would be known by it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shared.config import RunConfig
from shared.errors import PassportError
from shared.interest_space import InterestSpace

from .data.histories import Histories
from .durable_files import write_file
from .erasure_notice import NOTICE_SUFFIX, read_notice
from .key_rotation import own_keys
from .keys import PublicKeys
from .passports import export_passports, import_passports, read_passports, write_passports
from .preparation import PreparedDomain
from .private_passports import draw_once
from .private_terms import received
from .privunit import PrivUnit
from .public_projection import PrivateTerms
from .register import Register
from .settings import ClientSettings

if TYPE_CHECKING:
    from .training.examples import Passports

_LOG = logging.getLogger("isthmus.passports")
_DAY = 86_400
_SUFFIX = ".passports"
HALF = ".accepting-"
"""How the name of a file begins that the service is taking in; hidden, so that nobody takes it for a delivery."""
ENCODER_VERSION = "initial"
"""Passports are made by the encoder in its public initial state, once the interest space is fixed (contracts.md, 'Passports')."""

_ROWS_AT_A_TIME = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A sealed file that was made.

    Attributes:
        path: of the file.
        passports: how many it holds; for this partner's own eyes.
        issued, expires: unix seconds.
        terms: what private passports have in common; None for exact ones.
    """

    path: Path
    passports: int
    issued: int
    expires: int
    terms: PrivateTerms | None = None


def file_name(source: str, target: str) -> str:
    return f"{source}-to-{target}{_SUFFIX}"


def partners(settings: ClientSettings) -> dict[str, PublicKeys]:
    """Public keys of the partners, by domain.

    Raises:
        PassportError: a key file is damaged, or two files name one partner; names the file.
    """
    folder = settings.path(settings.passports.partners)
    found: dict[str, PublicKeys] = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            keys = PublicKeys.from_json(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise PassportError(f"{path.name}: the public keys are not JSON", do="Ask the partner for the file again.") from None
        except PassportError as error:
            raise PassportError(f"{path.name}: {error.what}", do=error.do) from None
        if keys.partner in found:
            do = "Keep the one that the partner confirms."
            raise PassportError(f"{path.name}: another file holds keys of '{keys.partner}' too", do=do)
        found[keys.partner] = keys
    return {name: keys for name, keys in found.items() if name != settings.domain}


def interests(histories: Histories, rows: np.ndarray, coordinates: np.ndarray, config: RunConfig) -> np.ndarray:
    """Interest vectors by the encoder's public initial state.

    Args:
        histories: of the users.
        rows: (n,) their positions in it.
        coordinates: (n_items, d).
    Returns:
        (n, d) float32.
    """
    from .model.encoders.recency import recency_weighted_mean

    parts = [np.zeros((0, coordinates.shape[1]), dtype=np.float32)]
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        items, mask = histories.padded(rows[start : start + _ROWS_AT_A_TIME], config.training.max_history_items)
        parts.append(recency_weighted_mean(coordinates[items] * mask[..., None], mask, config.training.history_decay))
    return np.concatenate(parts)


def export(settings: ClientSettings, config: RunConfig, prepared: PreparedDomain, target: str, space_version: str) -> Export:
    """Writes the sealed file of all passports towards one partner, exact or private as the settings say.

    Raises:
        PassportError: the partner's keys are not among the partners' keys.
        ConfigError, StateError: no private passport can be drawn (`private_passports.draw_once`).
    """
    known = partners(settings)
    if target not in known:
        do = f"Put the file the partner sent into {settings.passports.partners}."
        raise PassportError(f"there are no public keys of partner '{target}'", do=do)
    made = (_private if settings.passports.mode == "private" else _exact)(settings, config, prepared, target, space_version)
    now = int(time.time())
    expires = now + settings.passports.valid_days * _DAY
    version = space_version if made.terms is None else made.terms.projection.space_version
    data = export_passports(
        keys=own_keys(settings),
        source=settings.domain,
        target=known[target],
        link_ids=made.link_ids,
        vectors=made.vectors,
        space_version=version,
        encoder_version=ENCODER_VERSION,
        issued=now,
        expires=expires,
        private=made.terms,
    )
    epsilon = None if made.terms is None else made.terms.epsilon
    with Register(settings.at_home("register.sqlite")) as register:  # before they go out: no crash may lose track of a disclosure
        register.record_export(target=target, link_ids=made.link_ids, space_version=version, issued=now, expires=expires, epsilon=epsilon)
    path = settings.path(settings.passports.outbox) / file_name(settings.domain, target)
    write_passports(path, data)
    write_file(sent_mark(settings, target), space_version.encode())
    return Export(path=path, passports=len(made.link_ids), issued=now, expires=expires, terms=made.terms)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Made:
    """Link ids, vectors, and what private ones have in common."""

    link_ids: list[str]
    vectors: np.ndarray
    terms: PrivateTerms | None


def _linked(prepared: PreparedDomain, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and link ids of the users who are linked with a partner."""
    linked = prepared.links.get(target)
    return (np.zeros(0, dtype=np.int64), np.zeros(0, dtype="U1")) if linked is None else (linked.rows, linked.link_ids)


def _exact(settings: ClientSettings, config: RunConfig, prepared: PreparedDomain, target: str, space_version: str) -> _Made:
    """The interests themselves; users with too short a history get none, for it names the items."""
    del settings
    rows, ids = _linked(prepared, target)
    enough = np.diff(prepared.everyone.offsets)[rows] >= config.training.passport_min_items
    vectors = interests(prepared.everyone, rows[enough], prepared.coordinates(space_version), config)
    return _Made(link_ids=ids[enough].tolist(), vectors=vectors, terms=None)


def _private(settings: ClientSettings, config: RunConfig, prepared: PreparedDomain, target: str, space_version: str) -> _Made:
    """The draws of everybody who is linked."""
    rows, ids = _linked(prepared, target)

    def interests_of(some: np.ndarray) -> np.ndarray:
        return interests(prepared.everyone, some, prepared.coordinates(space_version), config)

    drawn = draw_once(settings, prepared, rows, space_version, interests_of)
    return _Made(link_ids=ids[drawn.rows].tolist(), vectors=drawn.vectors, terms=drawn.terms)


def export_all(settings: ClientSettings, config: RunConfig, prepared: PreparedDomain, space_version: str) -> list[Export]:
    """One file for each partner with known keys, also where nobody is linked: whether there is a file says nothing.

    What was exported for this interest space already is left as it is, so that a resumed run changes nothing.
    """
    wanted = [target for target in partners(settings) if not _exported(settings, target, space_version)]
    return [export(settings, config, prepared, target, space_version) for target in wanted]


def _exported(settings: ClientSettings, target: str, space_version: str) -> bool:
    mark = sent_mark(settings, target)
    return mark.is_file() and mark.read_text(encoding="utf-8") == space_version


def sent_mark(settings: ClientSettings, target: str) -> Path:
    """Says for which interest space the last file went to a partner."""
    return settings.at_home("passports_sent") / target


def take_in(settings: ClientSettings, space_version: str, path: Path, *, dimension: int) -> int:
    """Opens one file and books its passports. Returns how many are new or renewed.

    Args:
        dimension: length of a vector in the interest space.
    Raises:
        PassportError: the file is damaged, forged, expired, or meant for somebody else.
    """
    passports = import_passports(
        read_passports(path),
        keys=own_keys(settings),
        me=settings.domain,
        partners=partners(settings),
        space_version=space_version,
        now=int(time.time()),
        dimension=dimension,
    )
    with Register.of(settings) as register:
        return register.record_import(passports)


def take_in_all(settings: ClientSettings, space_version: str, *, dimension: int) -> int:
    """Every file in the inbox that is addressed to this domain by name. Returns how many passports are new or renewed.

    A file that cannot be used is left out, and said in the log on this machine: what one partner sends must not stop a round that is paid.
    Passports that a notice in the inbox asks to be erased are not taken in, and those in the register go.
    """
    _heed_notices(settings)
    new = 0
    for path in sorted(settings.path(settings.passports.inbox).glob(f"*-to-{settings.domain}{_SUFFIX}")):
        try:
            new += take_in(settings, space_version, path, dimension=dimension)
        except PassportError as error:
            _LOG.warning("%s was left out: %s", path.name, error)
    return new


def _heed_notices(settings: ClientSettings) -> None:
    """Marks what partners' notices ask for, before a round uses it. `forgetting.take_notice` does all of it, when somebody calls it."""
    for path in sorted(settings.path(settings.passports.inbox).glob(f"*-to-{settings.domain}-*{NOTICE_SUFFIX}")):
        try:
            notice = read_notice(path, keys=own_keys(settings), me=settings.domain, partners=partners(settings))
        except PassportError as error:
            _LOG.warning("%s was left out: %s", path.name, error)
            continue
        with Register.of(settings) as register:
            register.begin_erasure(notice.link_ids, issued_until=notice.issued, source=notice.source, at=int(time.time()))
            register.drop_erased()


def from_source(settings: ClientSettings, source: str, space: InterestSpace) -> tuple[list[str], np.ndarray]:
    """The valid passports from one source, exact and private, as interests of a space.

    Exact ones of another space are left out; private ones are read in any, as long as the language model is theirs.

    Returns:
        n link ids and (n, d) float32 vectors.
    """
    now = int(time.time())
    with Register(settings.at_home("register.sqlite")) as register:
        link_ids, vectors = register.imported(source, space_version=space.version, now=now)
        with register.reading() as database:
            private = received(database, source, now=now)
    parts = [vectors.reshape(len(link_ids), space.dimension)]
    for terms, ids, drawn in private:
        if not terms.projection.fits(space):
            _LOG.warning("private passports of another language model than this run's were left out")
            continue
        link_ids = [*link_ids, *ids]
        guess = drawn * PrivUnit.of(terms.dimension, terms.epsilon).shrinkage
        parts.append(terms.projection.expand(guess, space))
    return link_ids, np.concatenate(parts)


def of_users(settings: ClientSettings, prepared: PreparedDomain, source: str, space_version: str) -> tuple[np.ndarray, np.ndarray]:
    """Passports from one source, matched with users of this domain.

    Returns:
        (n,) rows of ``prepared.everyone`` and (n, d) float32 vectors.
    """
    link_ids, vectors = from_source(settings, source, prepared.space(space_version))
    linked = prepared.links.get(source)
    if linked is None or len(linked.rows) == 0 or not link_ids:
        return np.zeros(0, dtype=np.int64), np.zeros((0, vectors.shape[1]), dtype=np.float32)
    order = np.argsort(linked.link_ids)
    sorted_ids = linked.link_ids[order]
    wanted = np.array(link_ids)
    place = np.minimum(np.searchsorted(sorted_ids, wanted), len(sorted_ids) - 1)
    known = sorted_ids[place] == wanted
    return linked.rows[order[place[known]]].astype(np.int64), vectors[known]


def for_training(settings: ClientSettings, prepared: PreparedDomain, space_version: str, dimension: int) -> Passports:
    """The passports of training users, laid out for `Examples`."""
    from .training.examples import Passports

    sources = sorted(prepared.links)
    if not sources:
        return Passports.none(len(prepared.training_rows), dimension)
    position = np.full(len(prepared.roles), -1, dtype=np.int64)
    position[prepared.training_rows] = np.arange(len(prepared.training_rows))
    rows = np.full((len(prepared.training_rows), len(sources)), -1, dtype=np.int32)
    vectors = [np.zeros((0, dimension), dtype=np.float32)]
    count = 0
    for column, source in enumerate(sources):
        users, found = of_users(settings, prepared, source, space_version)
        train = position[users] >= 0
        rows[position[users[train]], column] = count + np.arange(int(train.sum()))
        vectors.append(found[train])
        count += int(train.sum())
    return Passports(vectors=np.concatenate(vectors), rows=rows)
