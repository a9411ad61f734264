"""What private passports cost in utility: HR@10 of people a domain never saw, with a draw for life in place of the interest itself.

Before any training: each direction is the identity and a serving head fitted on the passports of training users, which are of the same kind
as those that it is asked about. ``PYTHONPATH=. python tests/bench/bench_private_passports.py arts_office`` prints the table of a scenario;
with ``--trained 8`` the whole federation runs on private passports of that epsilon_u instead, and on exact ones with ``--trained 0``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from client.delivery import Domain
from client.evaluation import COLD, EvaluatedDomain, HeldOut, rank
from client.passport_exchange import interests
from client.preparation import PreparedDomain, prepare
from client.privunit import PrivUnit
from client.public_projection import Projection
from client.settings import ClientSettings, PassportSettings
from client.training.noise import SeededNoise
from shared.config import RunConfig
from shared.interest_space import InterestSpace, Moments
from shared.ranking import ScoreRows
from simulations import partners
from simulations.partners import data_folders, settle
from simulations.run_folder import RunFolder
from simulations.scenario import run_scenario
from simulations.scenario_config import load
from simulations.synthetic_domains import write as write_synthetic

CUT = 10
Change = Callable[[np.ndarray], np.ndarray]
"""Exact interests (n, d) -> what arrives in their place, (n, d)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Given(Domain):
    """A domain with passports at hand, instead of those in its register."""

    brought: dict[str, tuple[np.ndarray, np.ndarray]]

    def passports(self, source: str) -> tuple[np.ndarray, np.ndarray]:
        return self.brought[source]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Direction:
    """From one domain to another, before anything was trained: exact interests of everybody who is linked."""

    source: str
    target: str
    domain: Domain
    space: InterestSpace
    rows: np.ndarray
    interests: np.ndarray

    def evaluated(self, change: Change) -> EvaluatedDomain:
        vectors = change(self.interests).astype(np.float32)
        given = {field.name: getattr(self.domain, field.name) for field in dataclasses.fields(Domain)}
        domain = _Given(**given, brought={self.source: (self.rows, vectors)})
        return EvaluatedDomain(domain=domain, model=None, heads={})  # type: ignore[arg-type]  # nothing here asks a model

    def hit_rates(self, change: Change) -> tuple[float, float]:
        """HR@10 of cold people by the identity and a serving head, without and with their neighbours among training users."""
        there = self.evaluated(change)
        people = there.people(self.source, COLD)
        plain, near = there.without_federation(people, self.source)
        return _hit_rate(people, plain, there.n_items), _hit_rate(people, near, there.n_items)

    def text(self, change: Change) -> float:
        """The same by the cosine with an item's text alone: what the vector itself is worth."""
        there = self.evaluated(change)
        people = there.people(self.source, COLD)
        coordinates = np.asarray(self.domain.coordinates)
        return _hit_rate(people, lambda start, stop: people.interests[start:stop] @ coordinates.T, there.n_items)

    def popularity(self) -> float:
        there = self.evaluated(lambda exact: exact)
        people = there.people(self.source, COLD)
        counts = np.bincount(self.domain.prepared.training.items, minlength=there.n_items).astype(np.float32)
        return _hit_rate(people, lambda start, stop: np.tile(counts, (stop - start, 1)), there.n_items)


def _hit_rate(people: HeldOut, scores: ScoreRows, n_items: int) -> float:
    first = np.minimum.reduceat(rank(people, scores, n_items).ranks, people.offsets[:-1])
    return float((first < CUT).mean())


def drawn(direction: Direction, epsilon: float, dimensions: int, draw: int) -> Change:
    """Private passports as a target reads them. The noise is a test build's: the same figures again."""
    projection = Projection.of(direction.space, dimensions)
    law = PrivUnit.of(projection.dimension, epsilon)
    noise = SeededNoise("bench", direction.source, direction.target, epsilon, dimensions, draw)
    return lambda exact: projection.expand(law.release(projection.read(exact, direction.space), noise) * law.shrinkage, direction.space)


def cut(direction: Direction, dimensions: int) -> Change:
    """The public coordinates without any noise: what the others are worth."""
    projection = Projection.of(direction.space, dimensions)

    def change(exact: np.ndarray) -> np.ndarray:
        read = projection.read(exact, direction.space)
        lengths = np.linalg.norm(read, axis=1, keepdims=True)
        return projection.expand(read / np.maximum(lengths, 1e-12), direction.space)

    return change


def directions(scenario: str, folder: Path, seed: int = 0) -> tuple[RunConfig, list[Direction]]:
    """Both ways between all domains of a scenario."""
    chosen = load(scenario, seed=seed)
    run = RunFolder(folder / "run").create(chosen.run)
    if chosen.data.kind == "folder":
        sources = data_folders(chosen, None)
    else:
        write_synthetic(run.path / "data", chosen.synthetic, seed)
        sources = {path.name: path.absolute() for path in sorted((run.path / "data").iterdir())}
    settled = settle(run, chosen, sources, split_seed=0, ledgers=None)
    prepared = {one.domain: prepare(one, chosen.run) for one in settled}
    space = InterestSpace.from_moments(
        [Moments.of(np.asarray(each.text_vectors)) for each in prepared.values()], chosen.run.model.dimension
    )
    for each in prepared.values():
        each.fix_space(space)
    found = [
        _direction(one, other, chosen.run, prepared, space)
        for one in settled
        for other in settled
        if other.domain in prepared[one.domain].links
    ]
    return chosen.run, found


def _direction(
    target: ClientSettings, source: ClientSettings, config: RunConfig, prepared: dict[str, PreparedDomain], space: InterestSpace
) -> Direction:
    here, there = prepared[target.domain], prepared[source.domain]
    mine, theirs = here.links[source.domain], there.links[target.domain]
    _, at_mine, at_theirs = np.intersect1d(mine.link_ids, theirs.link_ids, assume_unique=True, return_indices=True)
    rows, there_rows = mine.rows[at_mine], theirs.rows[at_theirs]
    enough = np.diff(there.everyone.offsets)[there_rows] >= config.training.passport_min_items  # the same people in all rows of the table
    rows, there_rows = rows[enough], there_rows[enough]
    return Direction(
        source=source.domain,
        target=target.domain,
        domain=Domain(settings=target, config=config, prepared=here, space_version=space.version),
        space=space,
        rows=rows,
        interests=interests(there.everyone, there_rows, there.coordinates(space.version), config),
    )


def table(
    scenario: str, folder: Path, *, epsilons: tuple[float, ...], dimensions: tuple[int, ...], draws: int
) -> Iterator[dict[str, object]]:
    """A row for each direction and kind of passport."""
    _, found = directions(scenario, folder)
    for one in found:
        popularity = one.popularity()
        yield _row(one, "popularity", [(popularity, popularity)], [np.nan])
        yield _row(one, "exact", [one.hit_rates(_as_it_is)], [one.text(_as_it_is)])
        for width in dimensions:
            yield _row(one, f"exact direction in {width}", [one.hit_rates(cut(one, width))], [one.text(cut(one, width))])
            for epsilon in epsilons:
                changes = [drawn(one, epsilon, width, draw) for draw in range(draws)]
                rates, texts = [one.hit_rates(change) for change in changes], [one.text(change) for change in changes]
                yield _row(one, f"epsilon_u {epsilon:g} in {width}", rates, texts)


def _as_it_is(exact: np.ndarray) -> np.ndarray:
    return exact


def _row(one: Direction, kind: str, rates: list[tuple[float, float]], texts: list[float]) -> dict[str, object]:
    head, near = np.mean(rates, axis=0)
    return {"way": f"{one.source} -> {one.target}", "kind": kind, "head": head, "near": near, "text": float(np.mean(texts))}


def trained(scenario: str, folder: Path, epsilon_u: float, *, epsilon: float) -> dict[str, float]:
    """Mean HR@10 over all directions after a whole run.

    Args:
        epsilon_u: of the passports; 0 = exact ones.
        epsilon: of the run.
    """
    chosen = functools.partial(PassportSettings, mode="private", epsilon_u=epsilon_u) if epsilon_u else PassportSettings
    before, partners.PassportSettings = partners.PassportSettings, chosen  # type: ignore[attr-defined]  # no scenario chooses it
    try:
        run = run_scenario(scenario, out=folder, epsilon=epsilon)
    finally:
        partners.PassportSettings = before  # type: ignore[attr-defined]
    rows = [one["methods"] for one in json.loads((run / "metrics.json").read_text())["directions"]]
    return {name: float(np.mean([row[name]["hr@10"]["mean"] for row in rows])) for name in rows[0]}


def run(quick: bool = True) -> dict[str, float]:
    """Figures of ``make bench``: means over the directions of the scenario `demo`."""
    with tempfile.TemporaryDirectory() as folder:
        _, found = directions("demo", Path(folder))
        found = found[:2] if quick else found
        kinds: dict[str, Callable[[Direction], float]] = {
            "HR@10 by popularity": Direction.popularity,
            "HR@10 with exact passports, untrained": lambda one: one.hit_rates(_as_it_is)[1],
            "HR@10 with private passports at epsilon_u 8, untrained": lambda one: one.hit_rates(drawn(one, 8.0, 16, 0))[1],
        }
        return {name: float(np.mean([rate(one) for one in found])) for name, rate in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="?", default="demo")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--epsilons", default="2,4,8,16")
    parser.add_argument("--dimensions", default="16,32")
    parser.add_argument("--trained", type=float, default=None, metavar="EPSILON_U")
    parser.add_argument("--epsilon", type=float, default=np.inf, help="of the run, with --trained")
    asked = parser.parse_args()
    if asked.trained is not None:
        with tempfile.TemporaryDirectory() as folder:
            for name, rate in trained(asked.scenario, Path(folder), asked.trained, epsilon=asked.epsilon).items():
                print(f"{name:<24} HR@10 {rate:.4f}")
        return
    numbers = functools.partial(_numbers, float), functools.partial(_numbers, int)
    with tempfile.TemporaryDirectory() as folder:
        for row in table(
            asked.scenario, Path(folder), epsilons=numbers[0](asked.epsilons), dimensions=numbers[1](asked.dimensions), draws=asked.draws
        ):
            figures = f"head {row['head']:.4f}  with neighbours {row['near']:.4f}  text alone {row['text']:.4f}"
            print(f"{row['way']:<24} {row['kind']:<24} {figures}")
            sys.stdout.flush()


def _numbers(kind: type[int] | type[float], text: str) -> tuple[float, ...]:
    return tuple(kind(part) for part in text.split(","))


if __name__ == "__main__":
    main()
