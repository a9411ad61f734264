"""A partner small enough to train in milliseconds: the real local round on a real ledger and a real state folder, synthetic users."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.data.histories import Histories
from client.serving_state import ServingFolder
from client.state import State, StateFolder
from client.training import local_round
from client.training.examples import Examples, Passports
from client.training.local_round import TrainingData, round_mechanism
from shared.config import ComputeConfig, ModelConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.privacy.ledger import Ledger
from shared.transfer_layer import initial_arrays
from shared.wire import RoundInstruction, TransferUpdate
from tests.shared.privacy.bookshop import KEYS

D, ITEMS, SPACE = 16, 300, "0" * 16
MODEL = ModelConfig(dimension=D, rank=4, descriptor_dimension=4, prototypes=8)
TRAINING = TrainingConfig(max_history_items=10, max_items_per_user=40, target_items=4, catalogue_negatives=64)

SHOUTS = {"features": 1e3, "nan": float("nan"), "infinite": float("inf"), "overflow": 1e37}


def config_of(*, training: TrainingConfig = TRAINING, model: ModelConfig = MODEL, seed: int = 0, **privacy: Any) -> RunConfig:
    """Everybody in every batch, one step a round, noise named by its key; ``privacy`` changes that."""
    defaults = {
        "noise": "seeded",
        "sampling_rate": 1.0,
        "noise_multiplier": 1.0,
        "expected_batch_users": 16,
        "rounds": 6,
        "steps_per_round": 1,
    }
    return RunConfig(
        seed=seed, privacy=PrivacyConfig(**{**defaults, **privacy}), model=model, training=training, compute=ComputeConfig(torch_threads=1)
    )


def histories_of(lists: list[np.ndarray]) -> Histories:
    lengths = np.array([len(items) for items in lists], dtype=np.int64)
    items = np.concatenate([*lists, np.zeros(0)]).astype(np.int32)
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items=items, times=np.arange(len(items), dtype=np.int64)
    )


@dataclass(frozen=True, kw_only=True)
class People:
    """Users as lists of items, each with at most one passport from each of two partners."""

    items: list[np.ndarray]
    passports: np.ndarray  # (n, 2, d)
    brought: np.ndarray  # (n, 2) bool

    def without(self, position: int) -> People:
        """The neighbouring data set: one user, with everything that is theirs, is gone."""
        keep = [i for i in range(len(self.items)) if i != position]
        return People(items=[self.items[i] for i in keep], passports=self.passports[keep], brought=self.brought[keep])

    def with_loud(self, position: int, kind: str) -> People:
        """One user shouts: features a thousand times too large, not numbers at all, beyond float32, or a history of maximal length."""
        items, passports, brought = list(self.items), self.passports.copy(), self.brought.copy()
        brought[position] = True
        if kind == "length":
            items[position] = np.random.default_rng(99).choice(ITEMS, size=200, replace=False)
        else:
            passports[position] *= np.float32(SHOUTS[kind])
        return People(items=items, passports=passports, brought=brought)

    def data(self, domain: str) -> TrainingData:
        rows = np.where(self.brought, np.cumsum(self.brought).reshape(self.brought.shape) - 1, -1).astype(np.int32)
        return TrainingData(
            domain=domain,
            histories=histories_of(self.items),
            coordinates=coordinates(),
            passports=Passports(vectors=self.passports[self.brought], rows=rows),
            descriptor=coordinates()[:, :4].mean(axis=0),
            space_version=SPACE,
        )


def coordinates() -> np.ndarray:
    return unit(np.random.default_rng(5).normal(size=(ITEMS, D)))


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


def people(count: int, seed: int = 3) -> People:
    """Users with 0 to 14 items; two of three brought passports."""
    generator = np.random.default_rng(seed)
    items = [generator.choice(ITEMS, size=generator.integers(0, 15), replace=False) for _ in range(count)]
    return People(items=items, passports=unit(generator.normal(size=(count, 2, D))), brought=generator.random((count, 2)) < 0.6)


def examples_of(someone: People, training: TrainingConfig = TRAINING, seed: int = 1, kind: type[Examples] = Examples) -> Examples:
    data = someone.data("arts")
    return kind(
        histories=data.histories,
        coordinates=data.coordinates,
        passports=data.passports,
        descriptor=data.descriptor,
        config=training,
        generator=np.random.default_rng(seed),
    )


@dataclass(kw_only=True)
class Partner:
    """One domain: its folder, its data, its ledger. Rounds are real local rounds; the joint release is read off the training state."""

    home: Path
    config: RunConfig
    data: TrainingData
    domain: str = "arts"
    run_id: str = "run-1"
    layer: dict[str, np.ndarray] = field(default_factory=lambda: initial_arrays(MODEL, 7))

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        private = self.config.privacy.private
        path = self.home / "ledger.sqlite"
        if not path.exists():
            Ledger.create(path, signer=KEYS, domain=self.domain, ceiling_epsilon=1e4, delta=1e-6, set_by="a test", private=private).close()
        self.admit()

    def admit(self) -> None:
        privacy = self.config.privacy
        with Ledger.open(self.home / "ledger.sqlite", signer=KEYS) as ledger:
            mechanism = round_mechanism(self.config)
            ledger.admit(run_id=self.run_id, config_hash=self.config.config_hash, mechanism=mechanism, rounds=privacy.rounds, reserve=1)

    def another_run(self, run_id: str) -> Partner:
        """The next run in the life of the same domain, on what the last one left."""
        return dataclasses.replace(self, run_id=run_id)

    @property
    def state(self) -> State | None:
        return StateFolder(self.home / "state").current()

    @property
    def serving(self) -> ServingFolder:
        return ServingFolder(self.home / "serving")

    def update(self, number: int = 1) -> TransferUpdate:
        return local_round.run(
            RoundInstruction(run_id=self.run_id, round=number, config_hash=self.config.config_hash, arrays=self.layer),
            config=self.config,
            data=lambda: self.data,
            domain=self.domain,
            state_folder=StateFolder(self.home / "state"),
            ledger_path=self.home / "ledger.sqlite",
            signer=KEYS,
            bundle_digest="b" * 64,
            code_version="0",
        )

    def joint_release(self, number: int = 1) -> np.ndarray:
        """(p,) the noisy sum S of a round of one step.

        Adam's first moment is m = 0.9 m_before + 0.1 S / B_bar, and it is kept in the state for every parameter, shared or not.
        """
        before = self.state
        self.update(number)
        after = self.state
        assert after is not None
        carried = before is not None and before.key is not None and before.key.run_id == self.run_id
        old = moments(before) if before is not None and carried else 0.0
        return (moments(after) - 0.9 * old) * 10 * self.config.privacy.expected_batch_users


def moments(state: State) -> np.ndarray:
    first = [array for name, array in sorted(state.arrays.items()) if name.startswith("adam/first/")]
    return np.concatenate([array.ravel().astype(np.float64) for array in first])
