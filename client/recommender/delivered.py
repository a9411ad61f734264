"""What a partner recommends with: the delivered model, its serving heads, the prepared data and the passports that came in, opened once.

The histories are those of training. In a benchmark, people who are held out of it are strangers here too, and an item that is kept back was
never seen: so what is recommended can be measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shared.config import RunConfig
from shared.errors import StateError
from shared.interest_space import InterestSpace

from ..data.links import PartnerLinks
from ..data.pseudonyms import PSEUDONYM_BYTES, load_or_create_key, locate, sort_order
from ..delivery import OWN, Domain, refit, served_model, serving_heads, serving_warm_head
from ..model.adaptation import Start
from ..model.domain_head import ServingHead
from ..model.item_tokens import attach
from ..model.methods import InterestModel
from ..model.warm_head import WarmHead
from ..partner_data import partner_data
from ..passport_exchange import from_source
from ..preparation import PreparedDomain, prepare
from ..register import marks_of
from ..serving_state import ServingFolder, ServingState
from ..settings import ClientSettings
from ..suppression import Marks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Brought:
    """Interests for this domain that came as passports from one source.

    Attributes:
        link_ids: (m,) tokens, sorted.
        interests: (m, d) float32 in the same order, already carried over by the transfer layer.
        vectors: (m, d) float32 as they came, by which people are compared with their like.
        users: (n, 16) uint8 pseudonyms of linked users, sorted and distinct; with or without a history here.
        rows: (n,) their passports.
        marks: who was forgotten.
    """

    link_ids: np.ndarray
    interests: np.ndarray
    vectors: np.ndarray
    users: np.ndarray
    rows: np.ndarray
    marks: Marks

    def of_users(self, users: np.ndarray) -> np.ndarray:
        """(n,) rows of ``interests`` for (n, 16) users; -1 where one brought none."""
        found = locate(self.users, users)
        return np.where(found >= 0, self.rows[np.maximum(found, 0)], -1) if len(self.rows) else found

    def of_link(self, link_id: str) -> int:
        """The passport of a link; -1 where there is none, or it belongs to somebody forgotten."""
        at = int(np.searchsorted(self.link_ids, link_id))
        there = at < len(self.link_ids) and self.link_ids[at] == link_id and not self.marks.of_links([link_id])[0]
        return at if there else -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delivered:
    """One domain after delivery, ready to recommend.

    Attributes:
        settings, config, prepared, space: of the run that delivered.
        coordinates: (n_items, d) float32, memory-mapped.
        model: the trained model, in evaluation mode.
        heads: serving heads by name: sources, and `client.delivery.OWN`.
        positions: (n_users,) int64 from rows of ``prepared.everyone`` to those of ``prepared.training``, -1 for people held out.
        pseudonym_key: 32 bytes; turns the partner's own ids into pseudonyms.
        brought: by source, what linked users brought.
        warm: the blend for people with a history here; None where none was delivered.
        start: where adaptation to a user begins, for the method that learns it (`maml`); None for the others.
        version: run, round and the first hex digits of the content of what recommends.
    """

    settings: ClientSettings
    config: RunConfig
    prepared: PreparedDomain
    space: InterestSpace
    coordinates: np.ndarray
    model: InterestModel
    heads: dict[str, ServingHead]
    positions: np.ndarray
    pseudonym_key: bytes
    brought: dict[str, Brought]
    warm: WarmHead | None
    start: Start | None
    version: str

    @property
    def n_items(self) -> int:
        return len(self.prepared.item_ids)


def open_delivered(settings: ClientSettings) -> Delivered:
    """Opens the model and the data of a domain. Where the catalogue has changed since, the heads are fitted on it first.

    Raises:
        StateError: nothing was delivered yet, or what was is damaged; or the catalogue has changed and a later run is in hand.
        DataError: the partner's files cannot be used.
    """
    serving = _serving(settings)
    config, model = served_model(settings, serving)
    prepared = prepare(settings, config)
    if serving.meta.get("catalogue") != prepared.catalogue_hash:
        refit(settings)
        serving = _serving(settings)
        config, model = served_model(settings, serving)
    attach(model.encoder, prepared.item_tokens(serving.space_version))
    domain = Domain(settings=settings, config=config, prepared=prepared, space_version=serving.space_version)
    heads = serving_heads(serving)
    positions = np.full(len(prepared.roles), -1, dtype=np.int64)
    positions[prepared.training_rows] = np.arange(len(prepared.training_rows))
    key = load_or_create_key(settings.at_home("keys") / "pseudonyms.key")
    return Delivered(
        settings=settings,
        config=config,
        prepared=prepared,
        space=prepared.space(serving.space_version),
        coordinates=np.asarray(domain.coordinates),
        model=model,
        heads=heads,
        positions=positions,
        pseudonym_key=key,
        brought=_brought(domain, model, key, sorted(name for name in heads if name != OWN)),
        warm=serving_warm_head(serving),
        start=_start(serving, config, model),
        version=_version(serving),
    )


def _serving(settings: ClientSettings) -> ServingState:
    serving = ServingFolder(settings.at_home("serving")).current()
    if serving is None:
        raise StateError(
            "nothing was delivered to this domain yet", do="Let a run come to its end: its last message brings what recommends."
        )
    return serving


def _start(serving: ServingState, config: RunConfig, model: InterestModel) -> Start | None:
    if config.model.method != "maml":
        return None
    with torch.no_grad():
        scale = float(model.head(torch.ones(1, 1, 1)))
    layer = {name.removeprefix("layer/"): array for name, array in serving.arrays.items() if name.startswith("layer/")}
    return Start.of(layer, config, scale=scale)


def stamp(settings: ClientSettings) -> tuple[object, ...]:
    """Changes when something else than before would be opened: another serving state, other passports, somebody forgotten."""
    folder, register = settings.at_home("serving"), settings.at_home("register.sqlite")
    snapshots = sorted(path.name for path in folder.glob("snapshot-*")) if folder.is_dir() else []
    return (*snapshots[-1:], *_changed(register))


def _changed(path: Path) -> tuple[int, int]:
    try:
        said = path.stat()
    except OSError:
        return (0, 0)
    return said.st_mtime_ns, said.st_size


def _version(serving: ServingState) -> str:
    digest = hashlib.sha256()
    for name in sorted(serving.arrays):
        array = serving.arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"{serving.meta['run_id']}/{serving.meta['round']}/{digest.hexdigest()[:12]}"


def _brought(domain: Domain, model: InterestModel, key: bytes, sources: Sequence[str]) -> dict[str, Brought]:
    """The valid passports of linked users, those without any interaction here among them: they need them most.

    Forgotten users and links stay out, whatever the partner's files still hold.
    """
    settings = domain.settings
    if not settings.at_home("register.sqlite").is_file():
        return {}
    space = domain.prepared.space(domain.space_version)
    came = {source: from_source(settings, source, space) for source in sources}
    came = {source: found for source, found in came.items() if found[0]}
    if not came:
        return {}
    with partner_data(settings) as data:
        links = data.links_if_there(key)
    marks = marks_of(settings)
    made = {}
    for source, (arrived, unsorted) in sorted(came.items()):
        distinct, places = np.unique(np.array(arrived), return_index=True)  # of a link with two passports the first: the exact one
        link_ids, vectors = distinct.tolist(), unsorted[places]
        people = links.with_partner(source) if links is not None else None
        users, rows = _linked(people, link_ids, marks)
        interests = domain.transfer(model, vectors)
        made[source] = Brought(link_ids=distinct, interests=interests, vectors=vectors, users=users, rows=rows, marks=marks)
    return made


def _linked(people: PartnerLinks | None, link_ids: list[str], marks: Marks) -> tuple[np.ndarray, np.ndarray]:
    """(n, 16) users whose links have a passport, sorted, and (n,) rows of their passports."""
    if people is None or len(people) == 0:
        return np.zeros((0, PSEUDONYM_BYTES), dtype=np.uint8), np.zeros(0, dtype=np.int64)
    found = people.users(link_ids, people.pseudonyms)  # (passports,) positions among the linked, -1 where nobody is
    rows = np.flatnonzero(found >= 0)
    users = people.pseudonyms[found[rows]].reshape(-1, PSEUDONYM_BYTES)
    kept = ~marks.of_users(users) & ~marks.of_links([link_ids[row] for row in rows.tolist()])
    users, rows = users[kept], rows[kept]
    order = sort_order(users)
    return users[order], rows[order]
