"""The end of a run: the final transfer layer arrives, and the domain fits its serving heads with it.

A serving head is fitted on exact local data, so it lives in the serving folder: training cannot read it, and it never leaves. So does the
blend for warm users, which reads what items say about one another.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from shared import wire
from shared.config import RunConfig
from shared.errors import StateError

from . import warm_fits
from .model.domain_head import ServingHead, fit
from .model.head_likelihood import FittingData, counts_by_group
from .model.item_tokens import ReadsTexts
from .model.methods import InterestModel
from .model.methods.knowledge_mf import ReadsPrototypes
from .model.warm_head import WarmHead
from .passport_exchange import of_users
from .preparation import TRAIN, PreparedDomain
from .queries import CurrentRun, opened
from .serving_state import ServingFolder, ServingState
from .settings import ClientSettings
from .state import State, StateFolder
from .training.local_round import initial_model, load_model
from .training.noise import keyed_generator

OWN = "own history"
"""Name of the head that reads a user's own history, no domain's name; the others are named by the source of the passports they read."""

_WARM = "warm/"
_ROWS_AT_A_TIME = 4096


def deliver(settings: ClientSettings, question: wire.Deliver) -> wire.Ok:
    """Fits one head for each source of passports, one for own histories, and the blend for warm users.

    Raises:
        StateError: nothing was trained here yet.
    """
    CurrentRun(settings).check(question.run_id)
    fit_and_keep(settings, question.arrays, round=question.round)
    return wire.Ok()


def fit_and_keep(settings: ClientSettings, layer: dict[str, np.ndarray], *, round: int) -> None:
    """Fits the heads of the current run on the data as they are now, and makes them the serving state.

    Args:
        layer: the final transfer layer.
        round: after which it came.
    Raises:
        StateError: nothing was trained here in the current run.
    """
    run = CurrentRun(settings)
    config, prepared = opened(settings)
    version = run.space_version()
    trained = delivered_model(settings, config, layer)
    domain = Domain(settings=settings, config=config, prepared=prepared, space_version=version)
    heads = {source: domain.fit_head(source, domain.transferred(trained, source)) for source in sorted(prepared.links)}
    heads[OWN] = domain.fit_own_head(trained)
    arrays = {f"head/{name}/{part}": array for name, head in heads.items() for part, array in head.to_arrays().items()}
    arrays |= {f"{_WARM}{name}": array for name, array in domain.fit_warm_head().to_arrays().items()}
    arrays |= {f"layer/{name}": array for name, array in trained.shared_arrays().items()}
    # the model too: a later run trains another one in the state folder, and people want recommendations meanwhile
    arrays |= {f"model/{name}": array.detach().cpu().numpy().copy() for name, array in trained.named_parameters() if array.requires_grad}
    meta: dict[str, str | int] = {"run_id": run.run_id(), "round": round, "config": config.to_toml(), "catalogue": prepared.catalogue_hash}
    ServingFolder(settings.at_home("serving")).replace(ServingState(arrays=arrays, space_version=version, meta=meta))


def refit(settings: ClientSettings) -> bool:
    """Fits the heads of the serving state again, on the data as they are now. Returns False where there is no serving state.

    Raises:
        StateError: it belongs to another run than the current one, whose model is no longer here.
    """
    serving = ServingFolder(settings.at_home("serving")).current()
    if serving is None:
        return False
    if serving.meta.get("run_id") != CurrentRun(settings).run_id():
        raise StateError("the serving state belongs to an earlier run", do="Let the run in hand come to its end: it fits the heads anew.")
    layer = {name.removeprefix("layer/"): array for name, array in serving.arrays.items() if name.startswith("layer/")}
    fit_and_keep(settings, layer, round=int(serving.meta["round"]))
    return True


def delivered_model(settings: ClientSettings, config: RunConfig, layer: dict[str, np.ndarray]) -> InterestModel:
    """The trained model of this domain with the final shared layer.

    Raises:
        StateError: nothing was trained here in the current run.
    """
    run = CurrentRun(settings)
    state = StateFolder(settings.at_home("state")).current()
    if state is None or state.key is None or state.key.run_id != run.run_id() or state.space_version != run.space_version():
        raise StateError("nothing was trained here in this run yet", do="Run at least one round before the final layer is delivered.")
    model = initial_model(config, settings.domain)
    if isinstance(model.encoder, ReadsTexts):
        model.encoder.attach(opened(settings)[1].item_tokens(run.space_version()))
    load_model(model, state)
    model.load_shared(layer)
    return model.eval()


def served_model(settings: ClientSettings, serving: ServingState) -> tuple[RunConfig, InterestModel]:
    """The model that a serving state was fitted with, and its run's configuration, also while a later run trains another one.

    Raises:
        StateError: the serving state is of an earlier version, which kept no model.
    """
    if "config" not in serving.meta:
        raise StateError("the serving state holds no model", do="Let the run in hand deliver once more, or the next one.")
    config = RunConfig.from_toml(str(serving.meta["config"]))
    model = initial_model(config, settings.domain)
    load_model(model, State(arrays=serving.arrays, key=None, reply=None, space_version=serving.space_version))
    model.load_shared({name.removeprefix("layer/"): array for name, array in serving.arrays.items() if name.startswith("layer/")})
    return config, model.eval()


def serving_heads(state: ServingState) -> dict[str, ServingHead]:
    """The heads of a serving state, by name."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, array in state.arrays.items():
        if key.startswith("head/"):
            _, name, part = key.split("/")
            parts.setdefault(name, {})[part] = array
    return {name: ServingHead.from_arrays(arrays) for name, arrays in parts.items()}


def serving_warm_head(state: ServingState) -> WarmHead | None:
    """The blend for warm users; None where an earlier version delivered.

    Raises:
        StateError: it is damaged.
    """
    arrays = {name.removeprefix(_WARM): array for name, array in state.arrays.items() if name.startswith(_WARM)}
    return WarmHead.from_arrays(arrays) if arrays else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Domain:
    """A domain with its data at hand: interests and heads of its users."""

    settings: ClientSettings
    config: RunConfig
    prepared: PreparedDomain
    space_version: str

    @property
    def coordinates(self) -> np.ndarray:
        return self.prepared.coordinates(self.space_version)

    def passports(self, source: str) -> tuple[np.ndarray, np.ndarray]:
        """(n,) rows of users and (n, d) passports from one source, of everybody."""
        return of_users(self.settings, self.prepared, source, self.space_version)

    def training_passports(self, source: str) -> tuple[np.ndarray, np.ndarray]:
        """The same, training users only: (n,) positions in ``prepared.training`` and (n, d)."""
        rows, vectors = self.passports(source)
        train = self.prepared.roles[rows] == TRAIN
        return np.searchsorted(self.prepared.training_rows, rows[train]), vectors[train]

    def transferred(self, model: InterestModel | None, source: str) -> tuple[np.ndarray, np.ndarray]:
        """Training users with a passport from ``source``, and their interests here; without a model the identity."""
        users, vectors = self.training_passports(source)
        return users, self.transfer(model, vectors)

    @torch.no_grad()
    def transfer(self, model: InterestModel | None, vectors: np.ndarray) -> np.ndarray:
        """(n, d) passports -> (n, d) interests for this domain."""
        if model is None or len(vectors) == 0:
            return vectors
        space = self.prepared.space(self.space_version)
        if isinstance(model, ReadsPrototypes):
            model.read_with(torch.from_numpy(np.array(space.prototypes)))
        descriptor = space.descriptor(self.coordinates, self.config.model.descriptor_dimension)
        moved = model.transferred(torch.from_numpy(vectors)[:, None], torch.from_numpy(descriptor))
        return np.asarray(moved[:, 0].numpy())

    def counts(self, source: str) -> np.ndarray:
        """(F, n_items) how often items were taken: by all training users, and by those linked to ``source``."""
        users, _ = self.training_passports(source)
        linked = np.zeros(len(self.prepared.training), dtype=bool)
        linked[users] = True
        return counts_by_group([self.prepared.training.items, self.prepared.training.select(linked).items], len(self.coordinates))

    def fit_head(self, source: str, interests: tuple[np.ndarray, np.ndarray]) -> ServingHead:
        """Fits the head for passports of one source on the training users who brought one, and their neighbours beside it.

        Args:
            interests: positions in ``prepared.training``, and interests (n, d) for this domain.
        """
        users, vectors = interests
        data = self._fitting_data(users, vectors, self.counts(source))
        people, brought = self.training_passports(source)
        data = dataclasses.replace(data, passports=brought[np.argsort(people)])
        return fit(data, np.asarray(self.coordinates), generator=self._generator(source))

    def fit_own_head(self, model: InterestModel, most: int = 4000) -> ServingHead:
        """Fits the head for own histories: the interest of all items but the last, against the last one."""
        training = self.prepared.training
        generator = self._generator("own")
        enough = np.flatnonzero(training.lengths >= 2)
        users = np.sort(generator.choice(enough, size=min(most, len(enough)), replace=False)) if len(enough) else enough
        interests = self.own_interests(model, users, leave_out_last=True)
        items = training.items[training.offsets[users + 1] - 1]
        data = FittingData(
            interests=interests,
            offsets=np.arange(len(users) + 1, dtype=np.int64),
            items=np.asarray(items),
            counts=counts_by_group([np.asarray(training.items)], len(self.coordinates)),
        )
        return fit(data, np.asarray(self.coordinates), generator=generator)

    def fit_warm_head(self) -> WarmHead:
        """The blend for people with a history here: fitted once for the same prepared data."""
        folder, read = self.prepared.folder.resolve(), self.config.training.max_history_items
        np.asarray(self.coordinates)  # so that they lie in the folder
        return warm_fits.kept_or_fitted(folder, self.space_version, self.settings.domain, seed=self.config.seed, max_history=read)

    @torch.no_grad()
    def own_interests(self, model: InterestModel, users: np.ndarray, *, leave_out_last: bool = False) -> np.ndarray:
        """(n, d) interests of training users from their own history here.

        Args:
            users: positions in ``prepared.training``.
            leave_out_last: do not read the latest item.
        """
        length = self.config.training.max_history_items
        parts = [np.zeros((0, self.config.model.dimension), dtype=np.float32)]
        for start in range(0, len(users), _ROWS_AT_A_TIME):
            items, mask = self.prepared.training.padded(users[start : start + _ROWS_AT_A_TIME], length + leave_out_last)
            if leave_out_last:
                items, mask = items[:, :-1], mask[:, :-1]
            history = torch.from_numpy(self.coordinates[items])
            positions = torch.from_numpy(items.astype(np.int64))
            parts.append(model.encoder(history, torch.from_numpy(mask.astype(np.float32)), positions).numpy())
        return np.concatenate(parts)

    def _fitting_data(self, users: np.ndarray, vectors: np.ndarray, counts: np.ndarray) -> FittingData:
        mine = np.zeros(len(self.prepared.training), dtype=bool)
        mine[users] = True
        order = np.argsort(users)
        histories = self.prepared.training.select(mine)
        return FittingData(interests=vectors[order], offsets=histories.offsets, items=np.asarray(histories.items), counts=counts)

    def _generator(self, purpose: str) -> np.random.Generator:
        return keyed_generator(self.config.seed, self.settings.domain, "head", purpose)
