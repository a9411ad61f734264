"""The domain that took no part: who is measured on what, and the whole protocol on tiny worlds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from client.data.histories import Histories
from client.evaluation import rank
from client.model.adaptation import Start
from client.model.methods import make_model
from client.preparation import COLD, TRAIN, VALIDATION, PreparedDomain
from shared.config import ModelConfig, RunConfig, TrainingConfig
from shared.errors import UsageError
from shared.transfer_layer import initial_arrays
from simulations.cli import main
from simulations.unseen_command import lines
from simulations.unseen_domain import PAIRS, ROWS, Plan, measure
from simulations.unseen_people import Met, later_items, others_of, people_of

CONFIG = RunConfig(
    model=ModelConfig(dimension=2, rank=1, descriptor_dimension=1),
    training=TrainingConfig(passport_min_items=3, history_decay=0.5, temperature=1.0, inner_rate=0.5),
)
COORDINATES = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=np.float32)
TINY = {
    "synthetic.items": 48,
    "synthetic.users_alone": 30,
    "synthetic.users_linked": 60,
    "synthetic.interactions": 9,
    "privacy.rounds": 1,
    "privacy.steps_per_round": 2,
    "model.dimension": 8,
    "model.rank": 2,
    "model.descriptor_dimension": 2,
    "model.prototypes": 4,
}


def met() -> Met:
    """Four people: with items 0 1 2, with 3, with 0 0 1, with 2 1; the first and the third are measured, the last brought nothing."""
    histories = Histories(
        offsets=np.array([0, 3, 4, 7, 9]),
        items=np.array([0, 1, 2, 3, 0, 0, 1, 2, 1], dtype=np.int32),
        times=np.arange(9),
        pseudonyms=np.arange(64, dtype=np.uint8).reshape(4, 16),
    )
    roles = np.array([COLD, TRAIN, VALIDATION, TRAIN], dtype=np.int8)
    prepared = PreparedDomain(
        folder=Path(),
        everyone=histories,
        training=histories.select(roles == TRAIN),
        training_rows=np.flatnonzero(roles == TRAIN),
        roles=roles,
        links={},
        text_vectors=np.zeros((4, 3), dtype=np.float32),
        item_ids=list("abcd"),
        catalogue_hash="",
    )
    model = make_model(CONFIG, seed=0)
    model.load_shared(initial_arrays(CONFIG.model, 0))
    passports = np.array([[[0.0, 1.0], [0.0, 0.5]], [[1.0, 0.0], [9.0, 9.0]], [[0.0, -1.0], [9.0, 9.0]]], dtype=np.float32)
    return Met(
        config=CONFIG,
        prepared=prepared,
        coordinates=COORDINATES,
        rows=np.array([0, 1, 2]),
        passports=passports,
        brought=np.array([[True, True], [True, False], [True, False]]),
        model=model,
        start=Start.of({}, CONFIG),
        descriptor=np.zeros(1, dtype=np.float32),
    )


def test_the_first_items_are_known_and_the_later_ones_are_the_truth() -> None:
    people = people_of(met(), 1)
    assert people.rows.tolist() == [0, 2]  # the second person trains heads, and has one item anyway
    assert people.seen.tolist() == [0, 0]
    assert np.split(people.truth, people.offsets[1:-1])[0].tolist() == [1, 2]
    assert np.split(people.truth, people.offsets[1:-1])[1].tolist() == [1]  # item 0 came again: it is known already
    assert people_of(met(), 0).offsets.tolist() == [0, 3, 5]
    assert people_of(met(), 3).users == 0
    assert [items.tolist() for items in later_items(met(), np.array([1]), 0)] == [[3]]


def test_nobody_who_is_measured_is_in_the_popularity() -> None:
    assert np.bincount(others_of(met()).items, minlength=4).tolist() == [0, 1, 1, 1]
    assert met().in_fit.tolist() == [False, True, False]


def test_a_passport_counts_as_three_items_and_own_items_by_recency() -> None:
    one = met()
    elsewhere = one.carried()
    assert elsewhere.tolist() == [[0.0, 0.75], [1.0, 0.0], [0.0, -1.0]]  # the mean of what each brought, by the identity
    who = np.array([0])
    assert one.blended(elsewhere, who, 0).tolist() == [[0.0, 0.75]]
    assert one.blended(elsewhere, who, 1)[0].tolist() == pytest.approx([0.25, 0.75 * 0.75])
    # items 0 and 1 with decay 1/2: own = (1/3, 2/3)
    assert one.blended(elsewhere, who, 2)[0].tolist() == pytest.approx([0.4 / 3, 0.6 * 0.75 + 0.4 * 2 / 3])


def test_adaptation_reads_the_known_items_and_no_later_one() -> None:
    one = met()
    elsewhere = one.carried()
    assert one.adapted(elsewhere, np.array([0]), 0, one.start).tolist() == [[0.0, 0.75]]
    after = one.adapted(elsewhere, np.array([0]), 1, one.start)[0]
    assert after[0] > 0.2  # item 0 is (1, 0)


def test_seen_items_are_not_ranked() -> None:
    people = people_of(met(), 1)
    found = rank(people, lambda start, stop: np.tile(np.array([9.0, 1.0, 2.0, 3.0], dtype=np.float32), (stop - start, 1)), 4)
    assert found.ranks.tolist() == [2.0, 1.0, 2.0]  # of items 1, 2, 3 only


@pytest.mark.journey
def test_the_whole_protocol_on_a_tiny_world(tmp_path: Path) -> None:
    told: list[str] = []
    plan = Plan(scenario="demo", domain="music", out=tmp_path, epsilon=8.0, overrides=TINY, shots=(0, 5, 40))
    found = measure(plan, lambda stage, done, total: told.append(stage))
    assert found.others == ("books", "films")
    assert [shot.k for shot in found.shots] == [0, 5, 40]
    assert found.shots[0].users > found.shots[1].users > 10
    for shot in found.shots[:2]:
        assert set(shot.figures) == set(ROWS)
        assert [(one.a, one.b) for one in shot.differences] == list(PAIRS)
        assert all(0.0 <= shot.figures[row]["hr@10"].mean <= 1.0 for row in ROWS)
    assert found.shots[2].users == 0  # nobody has so many
    kept = json.loads((found.folder / "unseen.json").read_text())
    assert kept["shots"][0]["rows"]["federated"]["hr@10"]["mean"] == pytest.approx(found.shots[0].figures["federated"]["hr@10"].mean)
    desks = [path.parent.name for path in found.folder.rglob("partner.toml") if "runs" not in path.parts]
    assert sorted(desks) == ["books", "films", "music"]  # one home each: with two, keys and so the order of people would differ
    trained = {path.parent.name for path in (found.folder / "runs").glob("*/clients/*/partner.toml")}
    assert trained == {"books", "films"}  # the unseen domain sent nothing and was sent nothing
    assert {"residual: evaluate", "maml: evaluate", "meet", "measure"} <= set(told)
    printed = lines(found)
    assert "## 40 interactions known, 0 people" in printed
    assert sum(line.startswith("| federated |") for line in printed) == 2


@pytest.mark.journey
def test_the_command_prints_one_document(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = [f"--set={key}={value}" for key, value in {**TINY, "model.method": "maml"}.items()]
    with pytest.raises(SystemExit) as left:
        main(["unseen", "demo", "--domain", "films", "--epsilon", "none", "--out", str(tmp_path), "--json", "--quiet", *options])
    assert left.value.code == 0
    document = json.loads(capfd.readouterr().out)
    assert document["domain"] == "films"
    assert document["epsilon"] is None
    assert len(list((tmp_path / next(tmp_path.iterdir()).name / "runs").iterdir())) == 1  # its own method is maml: one federation is enough


def test_a_domain_that_is_not_there_and_too_few_others_are_wrong_usage(tmp_path: Path) -> None:
    silent = lambda stage, done, total: None  # noqa: E731
    with pytest.raises(UsageError, match="no domain 'musik'") as wrong:
        measure(Plan(scenario="demo", domain="musik", out=tmp_path / "a", overrides=TINY), silent)
    assert "books, films, music" in wrong.value.do
    assert not (tmp_path / "a").exists()
    for domain in ("arts", "office"):
        (tmp_path / "world" / domain).mkdir(parents=True)
        for name in ("items.csv", "interactions.csv"):
            (tmp_path / "world" / domain / name).write_text("item_id\n")
    two = {**TINY, "data.kind": "folder", "data.set": "world"}
    with pytest.raises(UsageError, match="fewer than two are left"):
        measure(Plan(scenario="demo", domain="arts", out=tmp_path / "b", data=tmp_path, overrides=two), silent)
