import dataclasses
import json
import math

import numpy as np
import pytest

from shared.errors import RunFolderError, StorageError
from simulations.json_files import read_json, write_json
from simulations.metrics import read_metrics, write_metrics
from simulations.ranks import METRICS, RanksFile, direction_of, method_figures, read_ranks, user_values, write_ranks

from .run_folder_fixture import DOMAINS, STRENGTH, config_of, metrics_of, planted_folder, planted_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return planted_folder(tmp_path_factory.mktemp("runs") / "run")


def by_hand() -> RanksFile:
    """User 1 holds items at ranks 0 and 20, user 2 none, user 3 one at rank 2."""
    top = np.tile(np.arange(20, dtype=np.int32), (3, 1))
    return RanksFile(
        offsets=np.array([0, 2, 2, 3]),
        users=np.arange(48, dtype=np.uint8).reshape(3, 16),
        popularity=np.ones(20, dtype=np.int64),
        ranks={"text": np.array([0, 20, 2], dtype=np.float32)},
        top={"text": top},
    )


def test_figures_of_two_users_are_those_of_the_hand():
    found = user_values(by_hand(), "text")
    assert found["hr@10"].tolist() == [1, 1]
    assert found["recall@10"].tolist() == [0.5, 1]
    assert found["mrr"] == pytest.approx([1, 1 / 3])
    assert found["ndcg@10"] == pytest.approx([0.6131, 0.5], abs=1e-4)  # 1 / (1 + 1/log2 3);  1/log2 4
    assert found["novelty@10"] == pytest.approx([math.log2(20)] * 2)


def test_users_without_held_out_items_are_no_part_of_a_figure():
    figures = method_figures(by_hand(), np.random.default_rng(0))["text"]
    assert figures["hr@10"].mean == 1
    assert figures["coverage@10"].mean == 0.5  # ten of twenty items


def test_ranks_come_back_as_they_were_written(tmp_path):
    ranks = planted_ranks(5, 0, STRENGTH)
    write_ranks(tmp_path / "a-b.npz", ranks)
    found = read_ranks(tmp_path / "a-b.npz")
    assert found.methods == list(STRENGTH)
    np.testing.assert_array_equal(found.ranks["federated"], ranks.ranks["federated"])
    np.testing.assert_array_equal(found.top["text"], ranks.top["text"])
    np.testing.assert_array_equal(found.users, ranks.users)


def test_a_missing_ranks_file_is_named(tmp_path):
    with pytest.raises(RunFolderError, match=r"a-b\.npz is missing"):
        read_ranks(tmp_path / "a-b.npz")


def test_a_damaged_ranks_file_is_refused(tmp_path):
    (tmp_path / "a-b.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(RunFolderError, match="not a ranks file"):
        read_ranks(tmp_path / "a-b.npz")


@pytest.mark.parametrize(
    "wrong",
    [
        {"offsets": np.array([0, 2, 2, 4])},
        {"offsets": np.array([0, 2, 1, 3])},
        {"users": np.zeros((2, 16), np.uint8)},
        {"top": {}},
        {"ranks": {"text": np.zeros(2, np.float32)}},
    ],
)
def test_ranks_whose_arrays_do_not_fit_together_are_refused(tmp_path, wrong):
    ranks = dataclasses.replace(by_hand(), **wrong)
    names = {"offsets": ranks.offsets, "users": ranks.users, "popularity": ranks.popularity}
    names |= {f"{m}/ranks": a for m, a in ranks.ranks.items()} | {f"{m}/top": a for m, a in ranks.top.items()}
    np.savez(tmp_path / "a-b.npz", **names)
    with pytest.raises(RunFolderError, match=r"a-b\.npz"):
        read_ranks(tmp_path / "a-b.npz")


def test_a_ranks_file_of_an_unknown_domain_is_refused():
    with pytest.raises(RunFolderError, match="neither a direction nor a domain"):
        direction_of("books-music", DOMAINS)


def test_metrics_have_every_field_of_schema_2(folder):
    values = json.loads((folder / "metrics.json").read_text())
    assert set(values) == {
        *("schema", "directions", "warm", "privacy", "seconds", "bytes", "peak_rss_mb", "config_hash", "versions"),
        *("seed", "split_seed", "epsilon_target", "noise", "private", "validation"),
    }
    assert values["schema"] == 2
    assert {(d["source"], d["target"]) for d in values["directions"]} == {DOMAINS, DOMAINS[::-1]}
    first = values["directions"][0]
    assert list(first) == ["source", "target", "n_users", "methods"]
    assert list(first["methods"]) == list(STRENGTH)
    assert tuple(first["methods"]["federated"]) == METRICS
    assert set(first["methods"]["federated"]["hr@10"]) == {"mean", "low", "high"}
    assert set(values["privacy"]["books"]) == {"epsilon", "delta", "ceiling", "pld", "prv", "rdp", "events"}
    assert set(values["seconds"]) == {"text_encoding", "training", "evaluation", "total"}
    assert set(values["bytes"]["books"]) == {"up", "down"}
    assert set(values["warm"]["books"]["methods"]) == {"popularity", "text", "federated"}


def test_metrics_come_back_as_they_were_written(folder):
    found = read_metrics(folder / "metrics.json")
    assert found == metrics_of(folder, config_of(), split_seed=0)
    assert found.direction("books", "films").methods["federated"]["hr@10"].mean > 0.3


def test_infinity_and_nan_never_enter_the_file_and_come_back(tmp_path, folder):
    metrics = metrics_of(folder, config_of(epsilon=math.inf), split_seed=0)
    odd = dataclasses.replace(metrics, peak_rss_mb=math.nan)
    write_metrics(tmp_path / "metrics.json", odd)
    values = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (values["epsilon_target"], values["private"], values["privacy"]["books"]["epsilon"]) == (None, False, None)
    found = read_metrics(tmp_path / "metrics.json")
    assert (found.epsilon_target, found.privacy["books"].pld) == (math.inf, math.inf)
    assert math.isnan(found.peak_rss_mb)


@pytest.mark.parametrize("schema", [0, 3, "1", None])
def test_a_schema_of_another_version_is_refused(tmp_path, schema):
    (tmp_path / "metrics.json").write_text(json.dumps({"schema": schema}))
    with pytest.raises(RunFolderError, match="this version reads schema 1 and 2"):
        read_metrics(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1.5),
        ("private", "yes"),
        ("config_hash", 3),
        ("peak_rss_mb", "much"),
        ("seconds", {}),
        ("bytes", {"books": {"up": 1}}),
        ("surprise", 1),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(tmp_path, folder, field, value):
    values = json.loads((folder / "metrics.json").read_text()) | {field: value}
    (tmp_path / "metrics.json").write_text(json.dumps(values))
    with pytest.raises(RunFolderError, match="does not follow schema 2"):
        read_metrics(tmp_path / "metrics.json")


def test_a_file_of_schema_1_is_one_without_validation_people(tmp_path, folder):
    values = json.loads((folder / "metrics.json").read_text())
    del values["validation"]
    (tmp_path / "metrics.json").write_text(json.dumps(values | {"schema": 1}))
    found = read_metrics(tmp_path / "metrics.json")
    assert found.validation == ()
    assert found.directions == read_metrics(folder / "metrics.json").directions


def test_half_a_document_is_refused(tmp_path):
    (tmp_path / "metrics.json").write_text('{"schema": 1,')
    with pytest.raises(RunFolderError, match="is not JSON"):
        read_json(tmp_path / "metrics.json")


def test_a_document_that_fails_half_way_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"new": math.nan})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_json(tmp_path / "file" / "a.json", {})
