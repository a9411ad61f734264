"""One local round: debit -> train -> update. The client's only choreographer.

The order is what makes the record true, whenever the power goes out:

0. the coordinator's last receipt of this domain is found in the ledger, or nothing happens: no data are opened, nothing is booked,
1. the `intent` is on disk before the first private gradient,
2. the new state, which holds the arrays of the reply and the key of the message, replaces the old one in one rename,
3. the `commit` records the digest of those arrays,
4. the receipt is read off the ledger and signed.

A message whose key is in the state is answered from there and never computed again; if its commit is missing, it is written then. An
attempt that was lost between 1 and 2 starts again from the previous state with a new intent, and is paid twice.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.data.histories import Histories
from client.ledger_lookup import check_last_receipt, find_round
from client.model.item_tokens import ItemTokens, attach
from client.model.methods import InterestModel, make_model
from client.state import RoundKey, State, StateFolder
from shared.config import RunConfig
from shared.errors import StateError
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism
from shared.privacy.signing import Signer
from shared.wire import Receipt, RoundInstruction, TransferUpdate, layer_sha256, payload_sha256

from .dp_sgd import joint_dimension, train
from .examples import Examples, Passports
from .noise import NoiseSource, NoNoise, SeededNoise, SystemNoise, keyed_generator
from .sampler import PoissonSampler

_MODEL, _FIRST, _SECOND, _STEPS = "model/", "adam/first/", "adam/second/", "adam/steps"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingData:
    """All that training may see: training users, public coordinates, passports. No path to the serving folder is among it.

    Attributes:
        domain: name of the domain.
        histories: (n_users,) training users only.
        coordinates: (n_items, d) public coordinates of the catalogue.
        passports: interest vectors that training users brought.
        descriptor: (d_c,) public descriptor of the domain.
        space_version: interest space of all the above.
        prototypes: (K, d) of that space, public; None where no method reads them.
        item_tokens: public tokens of the catalogue; None where no encoder reads texts.
    """

    domain: str
    histories: Histories
    coordinates: np.ndarray
    passports: Passports
    descriptor: np.ndarray
    space_version: str
    prototypes: np.ndarray | None = None
    item_tokens: ItemTokens | None = None


def initial_model(config: RunConfig, domain: str) -> InterestModel:
    """The public starting point of a domain: named by the seed and the domain, untouched by data."""
    digest = hashlib.sha256(f"{config.seed}/{domain}/model".encode()).digest()
    return make_model(config, seed=int.from_bytes(digest[:6], "little"))


def round_mechanism(config: RunConfig) -> Mechanism:
    """What one round of this run does to the data: ``steps_per_round`` steps over the joint vector."""
    privacy, dimension = config.privacy, _dimension(config)
    if privacy.epsilon == float("inf"):
        return Mechanism(
            kind="none",
            sampling_rate=privacy.sampling_rate,
            noise_multiplier=0.0,
            clip_norm=0.0,
            grid=0.0,
            dimension=dimension,
            steps=privacy.steps_per_round,
        )
    return Mechanism(
        kind="poisson_gaussian",
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=privacy.clip_norm,
        grid=privacy.grid,
        dimension=dimension,
        steps=privacy.steps_per_round,
    )


@functools.lru_cache(maxsize=8)
def _dimension(config: RunConfig) -> int:
    return joint_dimension(make_model(config, seed=0))


def run(
    instruction: RoundInstruction,
    *,
    config: RunConfig,
    data: Callable[[], TrainingData],
    domain: str,
    state_folder: StateFolder,
    ledger_path: Path,
    signer: Signer,
    bundle_digest: str,
    code_version: str,
    on_step: Callable[[], None] = lambda: None,
) -> TransferUpdate:
    """Answers one round.

    Args:
        instruction: what the server sent.
        config: the run configuration of `hello`.
        data: opens the training data, and computes nothing; called only when there is something to compute.
        domain: name of this domain.
        state_folder: training state of this domain.
        ledger_path: ledger of this domain.
        signer: the partner's key, which signs what is written there, and the receipt.
        bundle_digest, code_version: written into the intent.
        on_step: called after each step, for progress.
    Raises:
        StateError: the instruction belongs to another run configuration, or the state to another interest space.
        BudgetExhausted: the schedule, reserve included, is used up; no data were opened.
        RolledBack: the ledger is older than the receipt in the instruction.
        ForeignReceipts: that receipt is not this partner's.
    """
    if instruction.config_hash != config.config_hash:
        raise StateError("the instruction belongs to another run configuration than 'hello' brought")
    key = RoundKey(run_id=instruction.run_id, round=instruction.round, layer_sha256=layer_sha256(instruction.arrays))
    mechanism = round_mechanism(config)
    with Ledger.open(ledger_path, signer=signer) as ledger:
        check_last_receipt(ledger, instruction.last_receipt)
        state = state_folder.current()
        if state is None or state.key != key:
            ledger.may_intend(run_id=instruction.run_id, round=instruction.round, mechanism=mechanism, config_hash=config.config_hash)
            opened = data()  # before the intent: a file that cannot be read costs nothing
            attempt = ledger.intent(
                run_id=instruction.run_id,
                round=instruction.round,
                mechanism=mechanism,
                config_hash=config.config_hash,
                bundle_digest=bundle_digest,
                code_version=code_version,
            )
            state = _train(instruction, key, attempt, state, config, opened, mechanism, on_step)
            state_folder.replace(state)
        arrays = _shared_arrays(config, domain, state)
        digest = payload_sha256(instruction.run_id, instruction.round, config.config_hash, arrays)
        if ledger.committed(instruction.run_id, instruction.round) != digest:
            ledger.commit(run_id=instruction.run_id, round=instruction.round, attempt=int(state.meta["attempt"]), payload_sha256=digest)
        receipt = _receipt(ledger, domain, signer, instruction, digest)
    return TransferUpdate(
        run_id=instruction.run_id, round=instruction.round, config_hash=config.config_hash, arrays=arrays, receipt=receipt
    )


def _receipt(ledger: Ledger, domain: str, signer: Signer, instruction: RoundInstruction, digest: str) -> Receipt:
    """The ledger right after the commit, also where the reply is sent again later."""
    committed = find_round(ledger, instruction.run_id, instruction.round).committed
    if committed is None or committed.payload_sha256 != digest:
        raise StateError(
            "the ledger committed other bytes for this round than the training state holds", do="Restore the state, or end the run."
        )
    return committed.receipt(domain, signer)


def _train(
    instruction: RoundInstruction,
    key: RoundKey,
    attempt: int,
    previous: State | None,
    config: RunConfig,
    data: TrainingData,
    mechanism: Mechanism,
    on_step: Callable[[], None],
) -> State:
    if previous is not None and previous.key is not None and previous.key.run_id != instruction.run_id:
        previous = None  # a new run starts from the public state
    if previous is not None and previous.meta.get("config_hash") != config.config_hash:
        raise StateError("the training state was made by another configuration of this run", do="Start a new run.")
    if previous is not None and previous.space_version != data.space_version:
        raise StateError(
            "the training state belongs to another interest space", do="Start a new run; this one cannot go on in the new space."
        )
    torch.set_num_threads(config.compute.torch_threads)
    model = initial_model(config, data.domain)
    attach(model.encoder, data.item_tokens)
    optimizer = torch.optim.Adam([p for _, p in _trained(model)], lr=config.training.learning_rate)
    if previous is not None:
        _restore(model, optimizer, previous)
    model.load_shared(instruction.arrays)
    named = (config.seed, data.domain, instruction.round)
    train(
        model,
        optimizer,
        users=len(data.histories),
        make_batch=Examples(
            histories=data.histories,
            coordinates=data.coordinates,
            passports=data.passports,
            descriptor=data.descriptor,
            config=config.training,
            generator=keyed_generator(*named, "examples"),
            prototypes=data.prototypes,
        ),
        mechanism=mechanism,
        divisor=float(config.privacy.expected_batch_users),
        sampler=_sampler(config, named),
        noise=_noise(config, named),
        micro_batch_users=min(config.compute.micro_batch_users, getattr(model.encoder, "most_users", config.compute.micro_batch_users)),
        on_step=on_step,
    )
    return State(
        arrays=_arrays(model, optimizer),
        key=key,
        reply=None,
        space_version=data.space_version,
        meta={"attempt": attempt, "config_hash": config.config_hash, "private": int(config.privacy.private)},
    )


def _sampler(config: RunConfig, named: tuple[object, ...]) -> PoissonSampler:
    """Secret where the run is private; named by its key in test builds and at epsilon = inf, so that they can be repeated."""
    return PoissonSampler() if config.privacy.private else PoissonSampler(*named)


def _noise(config: RunConfig, named: tuple[object, ...]) -> NoiseSource:
    sources: dict[str, Callable[[], NoiseSource]] = {"system": SystemNoise, "seeded": lambda: SeededNoise(*named), "none": NoNoise}
    return sources[config.privacy.noise]()


def _arrays(model: InterestModel, optimizer: torch.optim.Adam) -> dict[str, np.ndarray]:
    """Parameters and the optimiser's moments, by name. All of it is DP-trained or public."""
    arrays: dict[str, np.ndarray] = {}
    steps = 0
    for name, parameter in _trained(model):
        arrays[_MODEL + name] = parameter.detach().cpu().numpy().copy()
        moments = optimizer.state[parameter]
        arrays[_FIRST + name] = moments["exp_avg"].cpu().numpy().copy()
        arrays[_SECOND + name] = moments["exp_avg_sq"].cpu().numpy().copy()
        steps = int(moments["step"])
    arrays[_STEPS] = np.array([steps], dtype=np.int64)
    return arrays


def _restore(model: InterestModel, optimizer: torch.optim.Adam, state: State) -> None:
    load_model(model, state)
    for name, parameter in _trained(model):
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.arrays[_STEPS][0])),
            "exp_avg": torch.from_numpy(state.arrays[_FIRST + name].copy()).to(parameter.device),
            "exp_avg_sq": torch.from_numpy(state.arrays[_SECOND + name].copy()).to(parameter.device),
        }


def _trained(model: InterestModel) -> list[tuple[str, torch.nn.Parameter]]:
    """What training moves; the rest of a model, such as a frozen language model, is public and comes from its own files."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def load_model(model: InterestModel, state: State) -> None:
    """Takes over the parameters of a state.

    Raises:
        StateError: when the state holds another model.
    """
    with torch.no_grad():
        for name, parameter in _trained(model):
            stored = state.arrays.get(_MODEL + name)
            if stored is None or stored.shape != tuple(parameter.shape):
                raise StateError(
                    f"the training state has no parameter '{name}' of this shape", do="Start a new run: its model is another one."
                )
            parameter.copy_(torch.from_numpy(stored.copy()))


def _shared_arrays(config: RunConfig, domain: str, state: State) -> dict[str, np.ndarray]:
    """What the state says was sent."""
    model = initial_model(config, domain)
    load_model(model, state)
    return model.shared_arrays()
