"""Conformance of non-interference: nothing outside the DP optimiser influences a release; above all no serving head."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from client.model import domain_head
from client.model.head_likelihood import FittingData, counts_by_group
from client.model.methods import InterestModel
from client.serving_state import ServingFolder, ServingState
from client.state import State, StateFolder
from client.training import local_round
from shared.config import RunConfig
from shared.errors import StateError
from tests.client.training.tiny_partner import ITEMS, SPACE, D, Partner, config_of, coordinates, people

COUPLED = config_of()


@cache
def fitted() -> dict[str, np.ndarray]:
    """A head on the exact data of everybody in `second_run`; fitted once, because a fit takes a second."""
    histories = people(24).data("arts").histories
    generator = np.random.default_rng(0)
    interests = generator.normal(size=(len(histories), D)).astype(np.float32)
    counts = counts_by_group([histories.items], ITEMS)
    data = FittingData(interests=interests, offsets=histories.offsets, items=histories.items, counts=counts)
    return domain_head.fit(data, coordinates(), generator=generator).to_arrays()


def refit(partner: Partner, scale: float | None = None) -> None:
    """Leaves a serving head on the exact data of this domain, as the end of a run does."""
    head = dict(fitted())
    if scale is not None:
        head["scale"] = np.array([scale], dtype=np.float32)
    partner.serving.replace(ServingState(arrays={f"head/own/{name}": array for name, array in head.items()}, space_version=SPACE))


def replaced_by_garbage(partner: Partner) -> None:
    shutil.rmtree(partner.home / "serving")
    (partner.home / "serving").mkdir()
    for name in ("snapshot-000000000001", "head.safetensors", "popularity.npy"):
        (partner.home / "serving" / name).write_bytes(os.urandom(4096))


def deleted(partner: Partner) -> None:
    shutil.rmtree(partner.home / "serving")


def another_head(partner: Partner) -> None:
    refit(partner, scale=50.0)


def untouched(partner: Partner) -> None:
    """The run that the others are compared with."""


def second_run(tmp_path: Path, name: str, change: Callable[[Partner], None]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Joint release and update of the second run of a domain whose serving folder was changed in between."""
    first = Partner(home=tmp_path / name, config=COUPLED, data=people(24).data("arts"))
    for number in (1, 2):
        first.update(number)
    refit(first)
    change(first)
    second = first.another_run("run-2")
    return second.joint_release(1), second.update(1).arrays


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return second_run(tmp_path_factory.mktemp("undisturbed"), "arts", untouched)


@pytest.mark.parametrize("change", [replaced_by_garbage, deleted, another_head])
def test_a_second_run_is_the_same_bit_for_bit_whatever_lies_in_the_serving_folder(
    tmp_path: Path, change: Callable[[Partner], None], undisturbed: tuple[np.ndarray, dict[str, np.ndarray]]
) -> None:
    release, arrays = second_run(tmp_path, "arts", change)
    assert release.tobytes() == undisturbed[0].tobytes()
    assert all(arrays[name].tobytes() == undisturbed[1][name].tobytes() for name in arrays)


def test_a_serving_head_as_starting_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = local_round.initial_model

    def peeking(name: str) -> Callable[[RunConfig, str], InterestModel]:
        def start(config: RunConfig, domain: str) -> InterestModel:
            model = real(config, domain)
            try:
                serving = ServingFolder(tmp_path / name / "serving").current()
            except StateError:
                serving = None
            if serving is not None:
                with torch.no_grad():
                    model.head.log_scale.weight.add_(float(serving.arrays["head/own/scale"][0]))
            return model

        return start

    releases = []
    for change in (untouched, another_head):
        monkeypatch.setattr(local_round, "initial_model", peeking(change.__name__))
        releases.append(second_run(tmp_path, change.__name__, change)[0])
    assert releases[0].tobytes() != releases[1].tobytes()


def test_a_new_run_starts_from_the_public_state_and_not_from_what_the_last_one_learned(tmp_path: Path) -> None:
    data = people(24).data("arts")
    fresh = Partner(home=tmp_path / "fresh", config=COUPLED, data=data, run_id="run-2")
    used = Partner(home=tmp_path / "used", config=COUPLED, data=people(30, seed=8).data("arts"))
    used.update(1)
    used.data = data
    assert fresh.joint_release(1).tobytes() == used.another_run("run-2").joint_release(1).tobytes()


def test_the_training_state_holds_parameters_and_moments_of_the_joint_vector_and_nothing_else(tmp_path: Path) -> None:
    partner = Partner(home=tmp_path / "arts", config=COUPLED, data=people(24).data("arts"))
    partner.update()
    state = partner.state
    assert state is not None
    names = {name for name, _ in local_round.initial_model(COUPLED, "arts").named_parameters()}
    assert set(state.arrays) == {f"{kind}/{name}" for kind in ("model", "adam/first", "adam/second") for name in names} | {"adam/steps"}
    assert set(state.meta) == {"attempt", "config_hash", "private"}


def test_every_parameter_of_the_state_follows_from_the_noisy_sums_alone(tmp_path: Path) -> None:
    """Adam, done by hand from the releases, gives the very parameters: no other update touched them."""
    partner = Partner(home=tmp_path / "arts", config=COUPLED, data=people(24).data("arts"))
    model = local_round.initial_model(COUPLED, "arts")
    model.load_shared(partner.layer)
    before = np.concatenate([p.detach().numpy().ravel() for _, p in sorted(model.named_parameters())]).astype(np.float64)
    gradient = partner.joint_release(1) / COUPLED.privacy.expected_batch_users
    state = partner.state
    assert state is not None
    after = np.concatenate([a.ravel() for name, a in sorted(state.arrays.items()) if name.startswith("model/")])
    # the first step of Adam: m_hat = g, v_hat = g^2
    np.testing.assert_allclose(after, before - COUPLED.training.learning_rate * gradient / (np.abs(gradient) + 1e-8), atol=1e-6)


def test_a_state_of_a_test_build_is_no_starting_point_for_a_private_run_of_the_same_name(tmp_path: Path) -> None:
    test_build = Partner(home=tmp_path / "test", config=COUPLED, data=people(24).data("arts"))
    test_build.update(1)
    private = Partner(home=tmp_path / "private", config=config_of(noise="system"), data=people(24).data("arts"))
    shutil.copytree(tmp_path / "test" / "state", tmp_path / "private" / "state")
    with pytest.raises(StateError, match="another configuration"):
        private.update(2)


def test_a_state_of_another_interest_space_is_no_starting_point(tmp_path: Path) -> None:
    partner = Partner(home=tmp_path / "arts", config=COUPLED, data=people(4).data("arts"))
    partner.update(1)
    state = partner.state
    assert state is not None
    StateFolder(tmp_path / "arts" / "state").replace(
        State(arrays=state.arrays, key=state.key, reply=None, space_version="f" * 16, meta=state.meta)
    )
    with pytest.raises(StateError, match="another interest space"):
        partner.update(2)
