"""The right answer is known by construction: found where it was planted, and not found where nothing was.

Noise, sampling and worlds are seeded here, so that the verdict is the same on every machine; real noise is for the desk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from simulations.bootstrap import Difference, paired_difference
from simulations.comparison import compare
from simulations.ranks import read_ranks, user_values
from simulations.scenario import run_scenario

pytestmark = pytest.mark.journey

RIVALS = ("popularity", "target-only", "federated-shuffled")
EVERYWHERE = "all directions"


def differences(out: Path, strength: float, seeds: Sequence[int]) -> dict[str, dict[str, Difference]]:
    """Direction -> rival -> federated minus rival in HR@10, paired over users, users of all seeds together.

    Under `EVERYWHERE` stand the users of all directions; a person who counts in two of them is drawn as one.
    """
    overrides = {"privacy.noise": "seeded", "synthetic.strength": strength, "compute.torch_threads": 1}
    runs = [run_scenario("demo", out=out, seed=seed, split_seed=seed, overrides=overrides) for seed in seeds]
    found: dict[str, dict[str, Difference]] = {}
    for result in compare(runs, generator=np.random.default_rng(0)).results:
        if result.source is not None:
            found[result.title] = {d.b: d for d in result.differences["hr@10"] if d.b in RIVALS}
    assert len(found) == 6
    ranks = [read_ranks(path) for run in runs for path in sorted((run / "ranks").glob("*.npz")) if not path.name.startswith("warm")]
    persons = np.concatenate([each.users[each.with_truth] for each in ranks])
    values = {m: np.concatenate([user_values(each, m)["hr@10"] for each in ranks]) for m in ("federated", *RIVALS)}
    found[EVERYWHERE] = {
        rival: paired_difference(
            ("federated", values["federated"]), (rival, values[rival]), generator=np.random.default_rng(0), persons=persons
        )
        for rival in RIVALS
    }
    for direction, rivals in found.items():
        assert set(rivals) == set(RIVALS)
        cells = [f"{rival} {d.interval.mean:+.3f} [{d.interval.low:+.3f}, {d.interval.high:+.3f}]" for rival, d in rivals.items()]
        print(f"{direction} ({rivals['popularity'].n_users} users): federated minus " + ", ".join(cells))
    return found


def test_federated_beats_popularity_target_only_and_shuffled_where_a_map_was_planted(tmp_path: Path) -> None:
    found = differences(tmp_path, 1.0, seeds=(0, 1, 2))
    assert [rival for rival, d in found[EVERYWHERE].items() if not d.interval.low > 0] == []
    # what a map is worth beside none at all shows in each direction with these few users
    plain = [
        (direction, rival)
        for direction, ds in found.items()
        for rival in ("popularity", "federated-shuffled")
        if not ds[rival].interval.low > 0
    ]
    assert plain == []


def test_federated_beats_nobody_where_nothing_was_planted(tmp_path: Path) -> None:
    found = differences(tmp_path, 0.0, seeds=(0, 1))
    gains = [(way, rival) for way, ds in found.items() for rival, d in ds.items() if d.interval.low > 0 and d.interval.mean > 0.01]
    assert gains == []
