"""A synthetic partner: invented users, real local rounds, on a throw-away ledger and state folder.

Nothing here imitates training. `Partner.update` calls `client.training.local_round.run`, which looks its own parts up when it is called, so
that a bug planted in them runs through the very same driver as the code of a release.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.data.histories import Histories
from client.serving_state import ServingFolder
from client.state import State, StateFolder
from client.training import local_round
from client.training.examples import Passports
from shared.config import ComputeConfig, RunConfig
from shared.errors import ConfigError, StateError
from shared.privacy.ledger import Ledger
from shared.privacy.signing import SigningPair
from shared.transfer_layer import initial_arrays
from shared.wire import RoundInstruction, TransferUpdate

from .steps import listening
from .texts import ITEMS, invented

PROTOTYPES, SPACE = 8, "0" * 16
SHOUTS = {"features": 1e3, "nan": float("nan"), "infinite": float("inf"), "overflow": 1e37}
LOUD = (*SHOUTS, "length")
"""How one user can be louder than all others: passports a thousand times too large, no numbers, beyond float32, or a very long history."""

CHILD = "from client.canary.synthetic import child; child()"
"""What another process runs."""

_LONGEST = 200
_MOST = {
    "model": {"dimension": 64, "rank": 16, "descriptor_dimension": 16, "prototypes": 8},
    "training": {"max_history_items": 50, "max_items_per_user": 100, "target_items": 8, "catalogue_negatives": 64},
}

_MOST_READ = {"model": {"lora_rank": 1, "lora_tokens": 4}, "training": {"max_history_items": 4}}
"""Where a language model reads the texts inside a step."""


def shrunk(config: RunConfig) -> tuple[RunConfig, tuple[str, ...]]:
    """The partner's configuration with shapes that a check can afford, and what was made smaller.

    Everything that decides about privacy stays: encoder, sharing, clip norm, grid, public divisor, learning rate, weights of the loss.

    Raises:
        ConfigError: the configuration promises no privacy, so there is nothing to check.
    """
    if config.privacy.epsilon == float("inf"):
        raise ConfigError("the run configuration promises no privacy (epsilon = inf), so nothing can be checked", do="Name another one.")
    notes: list[str] = []
    for table, usual in _MOST.items():
        record = getattr(config, table)
        most = usual | _MOST_READ[table] if config.model.encoder == "text-lora" else usual
        less = {name: limit for name, limit in most.items() if getattr(record, name) > limit}
        notes += [f"{table}.{name} {limit} instead of {getattr(record, name)}" for name, limit in less.items()]
        config = dataclasses.replace(config, **{table: dataclasses.replace(record, **less)})
    compute = ComputeConfig(torch_threads=1, micro_batch_users=config.compute.micro_batch_users)
    return dataclasses.replace(config, compute=compute), tuple(notes)


def with_privacy(config: RunConfig, **changes: Any) -> RunConfig:
    """The configuration for one check: six rounds of one step, everybody in every batch; ``changes`` are about ``privacy``."""
    usual = {"rounds": 6, "reserve_rounds": 1, "steps_per_round": 1, "sampling_rate": 1.0, "noise": "seeded", "noise_multiplier": 1.0}
    return dataclasses.replace(config, privacy=dataclasses.replace(config.privacy, **{**usual, **changes}))


def histories_of(lists: list[np.ndarray]) -> Histories:
    """Histories of users given as lists of items."""
    lengths = np.array([len(items) for items in lists], dtype=np.int64)
    items = np.concatenate([*lists, np.zeros(0)]).astype(np.int32)
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items=items, times=np.arange(len(items), dtype=np.int64)
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WatchedHistories(Histories):
    """Histories that tell who is read. Training reads a user's items only to compute that user's gradient."""

    on_read: Callable[[np.ndarray], None]

    def padded(self, users: np.ndarray, length: int, *, trim: bool = False) -> tuple[np.ndarray, np.ndarray]:
        self.on_read(np.array(users))
        return Histories.padded(self, users, length, trim=trim)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
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
        """One user shouts, in one of the ways of `LOUD`."""
        items, passports, brought = list(self.items), self.passports.copy(), self.brought.copy()
        brought[position] = True
        if kind == "length":
            items[position] = np.random.default_rng(99).choice(ITEMS, size=_LONGEST, replace=False)
        else:
            passports[position] *= np.float32(SHOUTS[kind])
        return People(items=items, passports=passports, brought=brought)

    def data(self, domain: str, descriptor_dimension: int = 4) -> local_round.TrainingData:
        """What training may see of these users."""
        rows = np.where(self.brought, np.cumsum(self.brought).reshape(self.brought.shape) - 1, -1).astype(np.int32)
        public = coordinates(self.passports.shape[2])
        return local_round.TrainingData(
            domain=domain,
            histories=histories_of(self.items),
            coordinates=public,
            passports=Passports(vectors=self.passports[self.brought], rows=rows),
            descriptor=public[:, :descriptor_dimension].mean(axis=0),
            space_version=SPACE,
            prototypes=public[:PROTOTYPES],
        )


def people(count: int, dimension: int, seed: int = 3) -> People:
    """Users with 0 to 14 items; two of three brought passports."""
    generator = np.random.default_rng(seed)
    items = [generator.choice(ITEMS, size=generator.integers(0, 15), replace=False) for _ in range(count)]
    return People(items=items, passports=unit(generator.normal(size=(count, 2, dimension))), brought=generator.random((count, 2)) < 0.6)


def long_histories(count: int, dimension: int) -> People:
    """Users of five items each, and one of four more than there are users."""
    crowd = people(count, dimension)
    items = [np.arange(i, i + (count + 4 if i == 0 else 5)) for i in range(count)]
    return People(items=items, passports=crowd.passports, brought=crowd.brought)


def watched(data: local_round.TrainingData, on_read: Callable[[np.ndarray], None]) -> local_round.TrainingData:
    """The same data; whoever reads users' items tells so first."""
    plain = data.histories
    arrays = {name: getattr(plain, name) for name in ("offsets", "items", "times", "pseudonyms", "ratings")}
    heard = WatchedHistories(**arrays, on_read=on_read)
    return dataclasses.replace(data, histories=heard)


def coordinates(dimension: int) -> np.ndarray:
    """(`ITEMS`, d) public coordinates of the invented catalogue."""
    return unit(np.random.default_rng(5).normal(size=(ITEMS, dimension)))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length one, float32."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


@functools.cache
def throwaway_key() -> SigningPair:
    """The key of all throw-away ledgers of this process; nobody keeps it."""
    return SigningPair.generate()


@dataclass(kw_only=True)
class Partner:
    """One domain: its folder, its data, its ledger. Rounds are real local rounds; the joint release is read off the training state."""

    home: Path
    config: RunConfig
    data: local_round.TrainingData
    domain: str = "arts"
    run_id: str = "run-1"
    layer: dict[str, np.ndarray] = field(default_factory=dict)
    signer: SigningPair = field(default_factory=throwaway_key)

    def __post_init__(self) -> None:
        self.layer = self.layer or initial_arrays(self.config.model, 7)
        self.data = dataclasses.replace(self.data, item_tokens=invented(self.config.model, ITEMS))
        self.home.mkdir(parents=True, exist_ok=True)
        if not self.ledger_path.exists():
            Ledger.create(
                self.ledger_path,
                signer=self.signer,
                domain=self.domain,
                ceiling_epsilon=1e4,
                delta=self.config.privacy.delta,
                set_by="a check",
                private=self.config.privacy.private,
            ).close()
        self.admit()

    @property
    def ledger_path(self) -> Path:
        return self.home / "ledger.sqlite"

    def admit(self) -> None:
        """Reserves the run's schedule."""
        privacy, mechanism = self.config.privacy, local_round.round_mechanism(self.config)
        with Ledger.open(self.ledger_path, signer=self.signer) as ledger:
            ledger.admit(
                run_id=self.run_id,
                config_hash=self.config.config_hash,
                mechanism=mechanism,
                rounds=privacy.rounds,
                reserve=privacy.reserve_rounds,
            )

    def another_run(self, run_id: str) -> Partner:
        """The next run in the life of the same domain, on what the last one left."""
        return dataclasses.replace(self, run_id=run_id)

    def copied(self, home: Path, **changes: Any) -> Partner:
        """The same partner with a copy of its folder, as a restored machine has it."""
        shutil.copytree(self.home, home)
        return dataclasses.replace(self, home=home, **changes)

    @property
    def state(self) -> State | None:
        return StateFolder(self.home / "state").current()

    @property
    def serving(self) -> ServingFolder:
        return ServingFolder(self.home / "serving")

    def update(self, number: int = 1, last_receipt: str = "") -> TransferUpdate:
        """One real local round; ``last_receipt`` as the coordinator shows it."""
        return local_round.run(
            RoundInstruction(
                run_id=self.run_id, round=number, config_hash=self.config.config_hash, arrays=self.layer, last_receipt=last_receipt
            ),
            config=self.config,
            data=lambda: self.data,
            domain=self.domain,
            state_folder=StateFolder(self.home / "state"),
            ledger_path=self.ledger_path,
            signer=self.signer,
            bundle_digest="b" * 64,
            code_version="0",
        )

    def sums(self, number: int = 1, *, held: bool = False) -> np.ndarray:
        """(steps, p) the noisy sum S of each step of a round; ``held`` as in `steps.listening`.

        Raises:
            StateError: the round took no step at all.
        """
        with listening(held=held) as heard:
            self.update(number)
        if not heard:
            raise StateError("a round took no step of an optimiser, so nothing can be checked")
        return np.stack(heard) * self.config.privacy.expected_batch_users

    def joint_release(self, number: int = 1) -> np.ndarray:
        """(p,) the noisy sum S of a round of one step.

        Adam's first moment is m = 0.9 m_before + 0.1 S / B_bar, and it is kept in the state for every parameter, shared or not.
        """
        before = self.state
        self.update(number)
        carried = before is not None and before.key is not None and before.key.run_id == self.run_id
        old = moments(before) if before is not None and carried else 0.0
        return (moments(self.state) - 0.9 * old) * 10 * self.config.privacy.expected_batch_users


def moments(state: State | None) -> np.ndarray:
    """(p,) Adam's first moments in a training state, float64, by the names of their parameters."""
    assert state is not None, "a round left no state"
    first = [array for name, array in sorted(state.arrays.items()) if name.startswith("adam/first/")]
    return np.concatenate([array.ravel().astype(np.float64) for array in first])


def partner(home: Path, config: RunConfig, crowd: People, domain: str = "arts") -> Partner:
    """A partner with these users."""
    return Partner(home=home, config=config, data=crowd.data(domain, config.model.descriptor_dimension), domain=domain)


def start_elsewhere(home: Path, config: RunConfig) -> subprocess.Popen[bytes]:
    """Begins the first round of a partner of its own in a new process; its release is then in the state below ``home``."""
    root = str(Path(local_round.__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    question = json.dumps({"home": str(home), "config": config.to_toml()})
    command = [sys.executable, "-c", CHILD, question]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def released_elsewhere(home: Path) -> np.ndarray:
    """(p,) what a process of `start_elsewhere` released: Adam's first moments, a mixture of the noisy sums of its steps."""
    return moments(StateFolder(home / "state").current())


def child() -> None:
    """The other process."""
    question = json.loads(sys.argv[1])
    config = RunConfig.from_toml(question["config"])
    partner(Path(question["home"]), config, people(40, config.model.dimension)).update()
