r"""A domain that took no part: what a delivered layer does for its people after 0, 1, 5 and 20 of their interactions there.

Leave one domain out: the others run a federation as always (the held-out people of the split are held out of it too), and the last layer,
the interest space and the public descriptor of the unseen domain are all that meets it. Nothing is trained there. People linked to the
other domains bring passports (the mean over what they brought); the first k of their interactions are known, all later ones are the truth.
What is known in both ways is blended as in serving: the passport stands for m items, so z = (m z_0 + k z_own) / (m + k).

===================  ==================================================================================================
``popularity``       counts of the unseen domain's own people
``text``             the passport as it is, and own items: cosine, no head
``identity``         the same interest with a serving head
``federated``        the passport through the delivered layer, and own items, with a serving head
``adapted``          the same layer, then the inner loop of `maml` from a start that nobody learned, with a serving head
``maml-adapted``     layer and start of a second federation with the method `maml`, then the inner loop, with a serving head
===================  ==================================================================================================

A serving head is fitted on exact data of the unseen domain's other linked people (roles of the split: training), in the same state of
knowledge k, for each row by itself, with the gate that leaves popularity where an interest does not help, and without alike people, who
would speak in every row. Rows are compared at one k only: another k is about other people and another truth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.model.adaptation import Start
from client.model.domain_head import ServingHead, fit
from client.model.head_likelihood import FittingData, counts_by_group
from client.model.methods import InterestModel, make_model
from client.model.methods.knowledge_mf import ReadsPrototypes
from client.passport_exchange import interests
from client.preparation import PreparedDomain, prepare
from client.settings import ClientSettings
from client.training.noise import keyed_generator
from server.checkpoints import Checkpoint, Checkpoints
from shared.errors import UsageError
from shared.ranking import ScoreRows

from . import baselines
from .bootstrap import Difference, Interval, paired_difference
from .control_rows import linked_rows, matrix, ranked
from .json_files import write_json
from .partners import data_folders, settle
from .ranks import RanksFile, method_figures, user_values, write_ranks
from .run_folder import RunFolder
from .scenario import Progress, run_scenario
from .scenario_config import Scenario, load
from .synthetic_domains import KINDS
from .synthetic_domains import write as write_synthetic
from .unseen_people import Met, ends, flat, later_items, others_of, people_of

SHOTS = (0, 1, 5, 20)
ROWS = ("popularity", "text", "identity", "federated", "adapted", "maml-adapted")
PAIRS = (
    ("federated", "popularity"),
    ("federated", "text"),
    ("federated", "identity"),
    ("maml-adapted", "popularity"),
    ("maml-adapted", "identity"),
    ("maml-adapted", "federated"),
    ("maml-adapted", "adapted"),
)
RESULT = "unseen.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        scenario: of a built-in scenario, or the path of a TOML file.
        domain: the one that is left out.
        out: folder in which the folder of this measurement is made.
        seed, split_seed, epsilon, data, overrides: as in `scenario.run_scenario`.
        shots: interactions that are known, ascending.
    """

    scenario: str
    domain: str
    out: Path
    seed: int = 0
    split_seed: int = 0
    epsilon: float | None = None
    data: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    shots: tuple[int, ...] = SHOTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """What was measured with k known interactions."""

    k: int
    users: int
    figures: Mapping[str, Mapping[str, Interval]]
    differences: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        figures = {row: {name: one.to_json() for name, one in found.items()} for row, found in self.figures.items()}
        return {"k": self.k, "users": self.users, "rows": figures, "differences": [one.to_json() for one in self.differences]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """A finished measurement."""

    folder: Path
    domain: str
    others: tuple[str, ...]
    epsilon: float
    shots: tuple[Shot, ...]

    def to_json(self) -> dict[str, Any]:
        epsilon = self.epsilon if np.isfinite(self.epsilon) else None
        shots = [one.to_json() for one in self.shots]
        return {"folder": str(self.folder), "domain": self.domain, "others": list(self.others), "epsilon": epsilon, "shots": shots}


def measure(plan: Plan, progress: Progress, note: Callable[[str], None] | None = None) -> Unseen:
    """Trains the others, meets the unseen domain, and measures.

    Raises:
        UsageError: there is no such domain, or fewer than two others, which could not learn a map between domains.
        IsthmusError: as `scenario.run_scenario` does.
    """
    scenario = load(plan.scenario, seed=plan.seed, epsilon=plan.epsilon, overrides=plan.overrides)
    others = _others(scenario, plan)
    place = RunFolder(plan.out / f"unseen-{plan.domain}-{scenario.run.config_hash[:8]}-{plan.split_seed}").create(scenario.run)
    scenario, data = _on_disk(scenario, place, plan)
    sources = data_folders(scenario, data)
    folders = {name: _federate(plan, scenario, data, others, place, name, progress, note) for name in _federations(scenario)}
    # one desk for all: a home made anew has another pseudonym key, and with it its people in another order
    desk = RunFolder(place.path / "desk").create(scenario.run)
    settings = settle(desk, scenario, sources, split_seed=plan.split_seed, ledgers=None)
    met = {name: _meet(plan.domain, settings, folder, progress) for name, folder in folders.items()}
    shots = []
    for number, k in enumerate(plan.shots):
        progress("measure", number, len(plan.shots))
        shots.append(_shot(met, k, place.ranks / f"{plan.domain}-{k}.npz"))
    progress("measure", len(plan.shots), len(plan.shots))
    found = Unseen(folder=place.path, domain=plan.domain, others=others, epsilon=scenario.run.privacy.epsilon, shots=tuple(shots))
    write_json(place.path / RESULT, found.to_json())
    return found


def _others(scenario: Scenario, plan: Plan) -> tuple[str, ...]:
    """The domains that take part."""
    domains = sorted(data_folders(scenario, plan.data)) if scenario.data.kind == "folder" else sorted(KINDS)
    if plan.domain not in domains:
        raise UsageError(f"scenario '{plan.scenario}' has no domain '{plan.domain}'", do=f"Domains: {', '.join(domains)}.")
    others = tuple(name for name in domains if name != plan.domain)
    if len(others) < 2:
        raise UsageError("without that domain fewer than two are left", do="A map between domains is learned from two others at least.")
    return others


def _on_disk(scenario: Scenario, place: RunFolder, plan: Plan) -> tuple[Scenario, Path | None]:
    """The scenario as one that reads files: invented domains are written first."""
    if scenario.data.kind == "folder":
        return scenario, plan.data
    write_synthetic(place.path / "data" / "world", scenario.synthetic, scenario.run.seed)
    files = dataclasses.replace(scenario.data, kind="folder", set="world", domains=",".join(sorted(KINDS)))
    return dataclasses.replace(scenario, data=files), place.path / "data"


def _federations(scenario: Scenario) -> tuple[str, ...]:
    """Which federations are needed, by method."""
    return tuple(dict.fromkeys((scenario.run.model.method, "maml")))


def _federate(
    plan: Plan,
    scenario: Scenario,
    data: Path | None,
    others: tuple[str, ...],
    place: RunFolder,
    method: str,
    progress: Progress,
    note: Callable[[str], None] | None,
) -> RunFolder:
    """Runs the others' federation with one method."""
    changed = {f"data.{name}": getattr(scenario.data, name) for name in ("kind", "set")}
    changed |= {"data.domains": ",".join(others), "model.method": method}
    changed["aggregation.min_clients"] = min(scenario.run.aggregation.min_clients, len(others))
    path = run_scenario(
        plan.scenario,
        out=place.path / "runs",
        seed=plan.seed,
        split_seed=plan.split_seed,
        epsilon=plan.epsilon,
        data=data,
        overrides={**plan.overrides, **changed},
        progress=lambda stage, done, total: progress(f"{method}: {stage}", done, total),
        note=note,
        with_target_only=False,
    )
    return RunFolder(path)


def _meet(domain: str, settings: Sequence[ClientSettings], run: RunFolder, progress: Progress) -> Met:
    """Prepares every domain once more, the unseen one among them, and hands it what was delivered."""
    end, _ = Checkpoints(run.transfer_layer).newest()
    prepared = {}
    for number, one in enumerate(settings):
        progress("meet", number, len(settings))
        prepared[one.domain] = prepare(one, end.config)
    progress("meet", len(settings), len(settings))
    here = prepared.pop(domain)
    coordinates = end.space.project(here.text_vectors)
    passports = {name: _brought(here, there, domain, name, end) for name, there in prepared.items() if name in here.links}
    rows = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(found for found, _ in passports.values())]))
    vectors = np.zeros((len(rows), max(len(passports), 1), end.config.model.dimension), dtype=np.float32)
    brought = np.zeros(vectors.shape[:2], dtype=bool)
    for column, (mine, found) in enumerate(passports.values()):
        at = np.searchsorted(rows, mine)
        vectors[at, column], brought[at, column] = found, True
    return Met(
        config=end.config,
        prepared=here,
        coordinates=coordinates,
        rows=rows,
        passports=vectors,
        brought=brought,
        model=delivered(end),
        start=Start.of(end.layer, end.config),
        descriptor=end.space.descriptor(coordinates, end.config.model.descriptor_dimension),
    )


def _brought(here: PreparedDomain, there: PreparedDomain, domain: str, source: str, end: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """(n,) rows here of people linked to a source, and (n, d) the passports that the source would make of them."""
    mine, theirs = linked_rows(here, there, source, domain)
    enough = there.everyone.lengths[theirs] >= end.config.training.passport_min_items
    vectors = interests(there.everyone, theirs[enough], end.space.project(there.text_vectors), end.config)
    return mine[enough].astype(np.int64), vectors


def delivered(end: Checkpoint) -> InterestModel:
    """The last layer in a model whose private parts nobody trained. No encoder is asked, so it is the smallest one."""
    config = dataclasses.replace(end.config, model=dataclasses.replace(end.config.model, encoder="attention"))
    model = make_model(config, seed=0)
    model.load_shared(end.layer)
    if isinstance(model, ReadsPrototypes):
        model.read_with(torch.from_numpy(np.array(end.space.prototypes)))
    return model.eval()


Interest = Callable[[np.ndarray], np.ndarray]
"""Positions of people -> their interests (m, d)."""


def _shot(met: Mapping[str, Met], k: int, path: Path) -> Shot:
    """All rows with k known interactions."""
    plain = next(iter(met.values()))
    people = people_of(plain, k)
    train = matrix(others_of(plain), len(plain.coordinates))
    scores: dict[str, ScoreRows] = {"popularity": baselines.popularity(train)}
    identity = plain.mean(plain.passports)
    scores["text"] = baselines.text(plain.blended(identity, people.rows, k), plain.coordinates)
    for name, (one, interest) in _interests(met, identity, k).items():
        head = _head(one, interest, k, name)
        scores[name] = _scores(head, interest(people.rows), one.coordinates)
    found = ranked(people, scores, baselines.item_counts(train), len(plain.coordinates))
    write_ranks(path, found)
    return Shot(
        k=k, users=int(found.with_truth.sum()), figures=method_figures(found, np.random.default_rng(k)), differences=_differences(found)
    )


def _interests(met: Mapping[str, Met], identity: np.ndarray, k: int) -> dict[str, tuple[Met, Interest]]:
    """Row -> who is met by which layer, and how their interests come about."""
    plain, maml = next(iter(met.values())), met["maml"]
    carried, begun = plain.carried(), maml.carried()
    unlearned = Start.of({}, plain.config)
    return {
        "identity": (plain, lambda who: plain.blended(identity, who, k)),
        "federated": (plain, lambda who: plain.blended(carried, who, k)),
        "adapted": (plain, lambda who: plain.adapted(carried, who, k, unlearned)),
        "maml-adapted": (maml, lambda who: maml.adapted(begun, who, k, maml.start)),
    }


def _head(met: Met, interest: Interest, k: int, row: str) -> ServingHead:
    """Fits a head on people who are not measured, in the same state of knowledge."""
    who = np.flatnonzero(met.in_fit & (met.lengths > k))
    later = later_items(met, who, k)
    linked = np.zeros(len(met.prepared.roles), dtype=bool)
    linked[met.rows[met.in_fit]] = True
    counts = counts_by_group([others_of(met).items, met.prepared.everyone.select(linked).items], len(met.coordinates))
    data = FittingData(interests=interest(who), offsets=ends(later), items=flat(later).astype(np.int32), counts=counts)
    return fit(data, met.coordinates, generator=keyed_generator(met.config.seed, "unseen", row, k))


def _scores(head: ServingHead, vectors: np.ndarray, coordinates: np.ndarray) -> ScoreRows:
    return lambda start, stop: head.scores(vectors[start:stop], coordinates)


def _differences(found: RanksFile) -> tuple[Difference, ...]:
    """Hit rates at 10 against each other, person by person."""
    if not found.with_truth.any():
        return ()
    values = {row: user_values(found, row)["hr@10"] for row in ROWS}
    persons = found.users[found.with_truth]
    return tuple(paired_difference((a, values[a]), (b, values[b]), generator=np.random.default_rng(0), persons=persons) for a, b in PAIRS)
