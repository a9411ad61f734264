"""DP releases: popularity, number of users, a metric. Mechanisms of their own, debited in the ledger before any data are opened.

The order is what makes the record true, as in a round: public things are read and the price is known; the debit is on the disk; then data
are opened, summed (`release_sums`), noised, rounded; the bytes are kept; only then do they leave, with a line in the egress manifest.
Asking again under the same id gives the very same bytes and costs nothing. A release that was paid for and whose bytes are not there any
more is lost: drawing new noise for it would be a second release for the price of one, so a new id, and a new debit, is needed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.config import RunConfig
from shared.errors import BudgetExhausted, DataError, RolledBack, StateError, UsageError
from shared.privacy.accountant import epsilon_pld
from shared.privacy.budget import decide_release, why_nothing_follows
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_book import Book
from shared.privacy.ledger_schema import Event, canonical
from shared.privacy.mechanism import Mechanism

from . import release_sums
from .durable_files import write_file
from .egress_manifest import Manifest
from .partner_data import partner_data
from .passport_exchange import own_keys
from .preparation import TRAIN, PreparedDomain, Progress, knows_space, prepare
from .queries import CurrentRun
from .settings import ClientSettings
from .state import State, StateFolder
from .training.noise import NoiseSource, SystemNoise

FORMAT = "isthmus-release-1"
POPULARITY, COUNT, METRIC = "popularity", "count", "metric"
HIT_RATE = "hit-rate-at-10"
_CUT = 10
_MOST_ITEMS, _MOST_USERS = 10_000, 2**40
_WHY = "a mechanism of its own, with its own noise, debited in the ledger"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What somebody wants to know. All of it is public.

    Args:
        purpose: `POPULARITY`, `COUNT` or `METRIC`.
        noise_multiplier: sigma: standard deviation of the noise over the sensitivity.
        max_items: of popularity: items that one user counts for at most.
        public_users: of a metric: what the noisy sum is divided by; a number that is known without looking at the data.
        release_id: names the release; empty = named by what is asked for.
    """

    purpose: str
    noise_multiplier: float
    max_items: int = 10
    public_users: int = 1
    release_id: str = ""

    def __post_init__(self) -> None:
        if not 0.0 < self.noise_multiplier < math.inf:
            raise UsageError("the noise multiplier is not a number above 0")
        if not 1 <= self.max_items <= _MOST_ITEMS:
            raise UsageError(f"a user counts for 1 to {_MOST_ITEMS:,} items")
        if not 1 <= self.public_users <= _MOST_USERS:
            raise UsageError("the public number of users is not a whole number of at least 1")
        if len(self.release_id) > 200 or not self.release_id.isprintable():
            raise UsageError("the id of a release is at most 200 printable characters")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A release before any data are opened.

    Attributes:
        release_id: as given, or made of all the rest.
        mechanism: what the ledger books.
        parameters: public constants that are not in the mechanism; ``config_hash`` is over them.
        sensitivity: why one user can change the sum by no more than ``mechanism.clip_norm``.
        sums: opens the prepared data and adds up, (p,) float64.
        values: what is told, from the rounded noisy sum.
    """

    purpose: str
    release_id: str
    config: RunConfig
    config_hash: str
    mechanism: Mechanism
    parameters: Mapping[str, Any]
    sensitivity: str
    sums: Callable[[PreparedDomain], np.ndarray]
    values: Callable[[np.ndarray], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a release would cost; nothing was read or booked.

    Attributes:
        alone: epsilon of this release by itself, by PLD.
        before, after: epsilon of everything spent or reserved, by who decides in this ledger, without it and with it.
        fits: whether it would be admitted.
        why: what else than its price stands against it; empty where nothing does.
        made: whether a release of this id was made already, so that asking costs nothing.
    """

    release_id: str
    alone: float
    before: float
    after: float
    ceiling: float
    delta: float
    standard_deviation: float
    fits: bool
    made: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The bytes of a release, as they are kept and handed over, and whether they were made just now."""

    data: bytes
    new: bool

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.data))


def plan(settings: ClientSettings, ask: Ask) -> Plan:
    """Fixes a release by public things alone: the run's configuration, the catalogue, what was trained under differential privacy.

    Raises:
        StateError: a metric is wanted, and nothing was trained here or the interest space is gone.
        DataError: the catalogue cannot be read, or there is no file of interactions or links.
    """
    with partner_data(settings) as data:
        data.require()  # looked for, not into: what cannot be made should not be paid for
    config = CurrentRun(settings).config_or_none() or RunConfig()
    if ask.purpose == POPULARITY:
        made = _popularity(settings, ask)
    elif ask.purpose == COUNT:
        made = ({"rule": "each user counts once"}, 1, 1.0, "one user changes the number of users by 1", _count, _count_values)
    elif ask.purpose == METRIC:
        made = _metric(settings, config, ask)
    else:
        raise UsageError(f"a release is one of {POPULARITY}, {COUNT} and {METRIC}")
    parameters, dimension, sensitivity, why, sums, values = made
    parameters = {"purpose": ask.purpose, "max_items_per_user": config.training.max_items_per_user, **parameters}
    mechanism = Mechanism(
        kind="gaussian",
        sampling_rate=1.0,
        noise_multiplier=float(ask.noise_multiplier),
        clip_norm=sensitivity,
        grid=0.0,  # what is rounded is rounded after the noise
        dimension=dimension,
        steps=1,
    )
    config_hash = hashlib.sha256(canonical(parameters).encode()).hexdigest()
    named = hashlib.sha256(canonical([config_hash, mechanism.to_record()]).encode()).hexdigest()[:12]
    return Plan(
        purpose=ask.purpose,
        release_id=ask.release_id or f"{ask.purpose}-{named}",
        config=config,
        config_hash=config_hash,
        mechanism=mechanism,
        parameters=parameters,
        sensitivity=why,
        sums=sums,
        values=values,
    )


def price(settings: ClientSettings, ask: Ask) -> Price:
    """What a release would cost and whether it would be admitted. Reads the ledger and public things only."""
    planned = plan(settings, ask)
    book = Book()
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        book.apply_all(ledger.events())
        made = _event(ledger, planned.release_id) is not None
        before, ceiling, delta = ledger.epsilon_reserved(), ledger.ceiling_epsilon, ledger.delta
    fits, after = True, before
    if not made:
        try:
            after = decide_release(book.budget, book.life, planned.mechanism, what="a release").epsilon_reserved
        except BudgetExhausted as refusal:
            fits, after = False, before + refusal.requested
    return Price(
        release_id=planned.release_id,
        alone=epsilon_pld([planned.mechanism], delta),
        before=before,
        after=after,
        ceiling=ceiling,
        delta=delta,
        standard_deviation=planned.mechanism.noise_scale,
        fits=fits,
        made=made,
        why="" if fits else why_nothing_follows(book.budget, book.life),
    )


def release(
    settings: ClientSettings, ask: Ask, *, out: Path | None = None, noise: NoiseSource | None = None, progress: Progress | None = None
) -> Released:
    """Makes a release, or finds the one that was made under this id.

    Args:
        out: where it is handed over; with it, the line in the egress manifest is written.
        noise: of the operating system where None; anything else is stamped NOT PRIVATE.
    Raises:
        BudgetExhausted: it would pass the ceiling; nothing was read.
        UsageError: ``out`` is another file.
        StateError: the release was paid for, and its bytes are lost.
        RolledBack: its bytes are kept here, and the ledger does not know it.
        LedgerError: another release was made under this id.
    """
    planned = plan(settings, ask)
    kept_at = settings.at_home("released") / f"{hashlib.sha256(planned.release_id.encode()).hexdigest()[:32]}.json"
    kept = kept_at.read_bytes() if kept_at.is_file() else None
    if out is not None and out.exists() and (not out.is_file() or out.read_bytes() != kept):
        raise UsageError(f"{out} exists and is not this release", do="Name another file with --out.")
    with Ledger.open(settings.ledger_path, signer=own_keys(settings)) as ledger:  # held until the bytes are kept: nobody else makes them
        there = _event(ledger, planned.release_id)
        if there is None and kept is not None:
            raise RolledBack(
                "a release was made whose debit is not in the ledger: the ledger is older than it was, or another one",
                do="Restore the newest file. Where it is lost, restart it, which books the whole ceiling, and choose a new id.",
            )
        event = ledger.release(
            release_id=planned.release_id, purpose=planned.purpose, mechanism=planned.mechanism, config_hash=planned.config_hash
        )
        if there is None:
            kept = _compute(settings, planned, ledger, event, noise or SystemNoise(), progress)
            write_file(kept_at, kept)
    if kept is None or json.loads(kept)["ledger_event"] != event.hash:
        raise StateError(
            "this release was paid for, and its bytes are not here: a crash, or a home restored from a copy, lost them",
            do="Give it a new id (--id): new noise is a new release, and is debited again.",
        )
    released = Released(data=kept, new=there is None)
    if out is not None:
        _hand_over(settings, released, event, out)
    return released


def _hand_over(settings: ClientSettings, released: Released, event: Event, out: Path) -> None:
    digest = hashlib.sha256(released.data).hexdigest()
    Manifest(settings.at_home("egress.jsonl")).left(
        kind="release", why=_WHY, schema="Release", size=len(released.data), sha256=digest, ledger_event=event.hash
    )
    write_file(out, released.data)


def _event(ledger: Ledger, release_id: str) -> Event | None:
    return next((e for e in ledger.events() if e.kind == "release" and e.payload["release_id"] == release_id), None)


def _compute(settings: ClientSettings, planned: Plan, ledger: Ledger, event: Event, noise: NoiseSource, progress: Progress | None) -> bytes:
    """From here on private data are open; the debit is on the disk."""
    mechanism = planned.mechanism
    sums = planned.sums(prepare(settings, planned.config, progress))
    if sums.shape != (mechanism.dimension,):
        raise DataError("the catalogue changed while the release was made", do="Let the export end, then ask under a new id (--id).")
    noisy = np.rint(sums + mechanism.noise_scale * noise.normal(mechanism.dimension)).astype(np.int64)
    document = {
        "format": FORMAT,
        "domain": settings.domain,
        "release_id": planned.release_id,
        "purpose": planned.purpose,
        "private": noise.private and ledger.private,
        "time_utc": event.time_utc,
        "unit": "one user with all their interactions here, added or removed",
        "parameters": dict(planned.parameters),
        "mechanism": {
            "kind": "gaussian",
            "noise_multiplier": mechanism.noise_multiplier,
            "sensitivity_l2": mechanism.clip_norm,
            "sensitivity_because": planned.sensitivity,
            "noise_standard_deviation": mechanism.noise_scale,
            "dimension": mechanism.dimension,
            "rounding": "to whole numbers, after the noise",
            "record": mechanism.to_record(),
        },
        "epsilon_of_this_release": epsilon_pld([mechanism], ledger.delta),
        "delta": ledger.delta,
        "epsilon_of_the_ledger_after_it": _number(ledger.epsilon_spent()),
        "ceiling_epsilon": _number(ledger.ceiling_epsilon),
        "decided_by": event.payload["decided_by"],
        "ledger_event": event.hash,
        "values": planned.values(noisy),
    }
    if not document["private"]:
        document["stamp"] = "NOT PRIVATE"
    return json.dumps(document, indent=1, allow_nan=False).encode()


def _number(value: float) -> float | str:
    """JSON knows no infinity, and a ledger that is not private may hold one."""
    return value if math.isfinite(value) else "inf"


_Made = tuple[dict[str, Any], int, float, str, Callable[[PreparedDomain], np.ndarray], Callable[[np.ndarray], dict[str, Any]]]


def _popularity(settings: ClientSettings, ask: Ask) -> _Made:
    with partner_data(settings) as data:
        catalogue = data.catalogue()
    parameters = {
        "rule": "the latest distinct items of each user's own history",
        "max_items": ask.max_items,
        "catalogue": catalogue.content_hash,
    }
    why = f"one user adds 1 to at most {ask.max_items:,} items, so the L2 norm of the change is at most sqrt({ask.max_items:,})"
    ids = catalogue.item_ids
    return (
        parameters,
        len(ids),
        math.sqrt(ask.max_items),
        why,
        lambda prepared: release_sums.popularity(prepared.training, len(prepared.item_ids), ask.max_items),
        lambda noisy: {"counts": dict(zip(ids, noisy.tolist(), strict=True))},
    )


def _count(prepared: PreparedDomain) -> np.ndarray:
    return release_sums.count(prepared.training)


def _count_values(noisy: np.ndarray) -> dict[str, Any]:
    return {"users": int(noisy[0])}


def _metric(settings: ClientSettings, config: RunConfig, ask: Ask) -> _Made:
    state = _trained(settings)
    version = CurrentRun(settings).space_version()
    if not knows_space(settings, version):  # paid for, it could not be made
        raise StateError(
            "this client does not know the interest space of the run any more",
            do="Take part in a run again: its first messages bring the space.",
        )
    assert state.key is not None
    parameters = {
        "metric": HIT_RATE,
        "rule": "the latest item of each user, ranked by the trained encoder on the others; no serving head, no popularity",
        "public_users": ask.public_users,
        "run_id": state.key.run_id,
        "round": state.key.round,
        "space_version": version,
    }

    def sums(prepared: PreparedDomain) -> np.ndarray:
        from .model.item_tokens import attach
        from .training.local_round import initial_model, load_model  # torch: only where it is needed

        model = initial_model(config, settings.domain)
        load_model(model, state)
        attach(model.encoder, prepared.item_tokens(version))
        whole = prepared.everyone.select(prepared.roles == TRAIN)  # with the latest item, which a benchmark keeps from training
        coordinates = prepared.coordinates(version)
        return release_sums.hits(whole, coordinates, model.encoder.eval(), length=config.training.max_history_items, cut=_CUT)

    def values(noisy: np.ndarray) -> dict[str, Any]:
        return {HIT_RATE: int(noisy[0]) / ask.public_users, "hits": int(noisy[0]), "public_users": ask.public_users}

    why = "one user adds 0 or 1 hit; the ranking is by what was trained under differential privacy, and by the public catalogue"
    return parameters, 1, 1.0, why, sums, values


def _trained(settings: ClientSettings) -> State:
    """The training state of the run in hand, if it was trained under differential privacy as far as the ledger promises."""
    run = CurrentRun(settings)
    state = StateFolder(settings.at_home("state")).current()
    if state is None or state.key is None or state.key.run_id != run.run_id() or state.space_version != run.space_version():
        raise StateError("nothing was trained here in this run yet", do="Run at least one round before a metric is asked for.")
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        if ledger.private and state.meta.get("private") != 1:
            raise StateError(
                "the model was trained by a test build, without privacy: every user's value would depend on all others",
                do="Train it under differential privacy first.",
            )
        if ledger.committed(state.key.run_id, state.key.round) is None:
            raise StateError("the ledger does not know the round that trained the model", do="Restore the newest ledger, or train again.")
    return state
