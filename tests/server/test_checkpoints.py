"""A checkpoint is whole or does not count."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.checkpoints import Checkpoint, Checkpoints
from shared.errors import FederationError, StorageError
from shared.interest_space import InterestSpace
from shared.privacy.receipts import SignedReceipt
from shared.transfer_layer import initial_arrays
from tests.server.tiny_clients import KEYS, small_config

CONFIG = small_config()
RECEIPT = SignedReceipt.signed(
    KEYS[0],
    domain="arts",
    count_of_intents=2,
    head_hash="1" * 64,
    payload_sha256="2" * 64,
    mechanism='{"a":1}',
    epsilon_spent=float("inf"),
)


def checkpoint(round: int = 1) -> Checkpoint:
    space = InterestSpace(
        mean=np.zeros(12, np.float32),
        basis=np.eye(12, 4, dtype=np.float32),
        scale=np.ones(4, np.float32),
        prototypes=np.eye(3, 4, dtype=np.float32),
    )
    layer = {name: array + np.float32(round) for name, array in initial_arrays(CONFIG.model, 0).items()}
    return Checkpoint(
        run_id="tiny-1",
        round=round,
        config=CONFIG,
        space=space,
        layer=layer,
        descriptors={"arts": np.arange(3, dtype=np.float32)},
        strategy={"first/transfer.reader": np.ones((2, 4))},
        receipts={"arts": RECEIPT},
    )


def test_everything_is_read_back(tmp_path: Path) -> None:
    store, written = Checkpoints(tmp_path / "transfer_layer"), checkpoint()
    assert store.save(written).name == "round-0001.safetensors"
    read = store.load(1)
    assert (read.run_id, read.round, read.config, read.space, read.receipts) == ("tiny-1", 1, CONFIG, written.space, {"arts": RECEIPT})
    for name in ("layer", "descriptors", "strategy"):
        ours, theirs = getattr(written, name), getattr(read, name)
        assert sorted(ours) == sorted(theirs)
        assert all(ours[key].dtype == theirs[key].dtype and np.array_equal(ours[key], theirs[key]) for key in ours)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


def _other_receipt(path: Path) -> None:
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest["receipts"]["arts"]["epsilon_spent"] = (0.0).hex()
    path.with_suffix(".json").write_text(json.dumps(manifest))


def _no_json(path: Path) -> None:
    path.with_suffix(".json").write_text("[]")


def _arrays_of_another_round(path: Path) -> None:
    path.write_bytes(path.with_name("round-0001.safetensors").read_bytes())


@pytest.mark.parametrize("damage", [_cut, _flip, _other_receipt, _no_json, _arrays_of_another_round, Path.unlink])
def test_a_damaged_newest_checkpoint_is_said_and_the_previous_one_taken(tmp_path: Path, damage: object) -> None:
    store = Checkpoints(tmp_path)
    store.save(checkpoint(1))
    newest = store.save(checkpoint(2))
    damage(newest)  # type: ignore[operator]
    found, damaged = store.newest()
    assert found.round == 1
    assert len(damaged) == 1
    assert "round-0002.json" in damaged[0]


def test_arrays_without_a_manifest_are_no_checkpoint(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.save(checkpoint(1))
    store.save(checkpoint(2)).with_suffix(".json").unlink()  # ... the power went out between the two files
    assert store.rounds() == [1]


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="nothing to resume"):
        Checkpoints(tmp_path / "nowhere").newest()


@pytest.fixture
def full_disk() -> Iterator[None]:
    """The operating system refuses every file beyond 100 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_room_the_previous_checkpoint_stays_intact(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store = Checkpoints(tmp_path)
    store.save(checkpoint(1))
    request.getfixturevalue("full_disk")
    with pytest.raises(StorageError, match="cannot be written"):
        store.save(checkpoint(2))
    with pytest.raises(StorageError, match="cannot be written"):
        store.save(dataclasses.replace(checkpoint(1), run_id="tiny-2"))
    found, damaged = store.newest()
    assert (found.round, found.run_id, damaged) == (1, "tiny-1", [])
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []
