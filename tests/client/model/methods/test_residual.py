"""The method `residual`: which of its arrays travel under each way of sharing, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.model.methods import InterestModel, make_model
from shared.config import ModelConfig, RunConfig
from shared.transfer_layer import DESCRIPTOR, READER, WRITER, initial_arrays, shared_shapes

SHARINGS = ("shared", "shared-private", "private-writer", "private-bias")


def model_of(sharing: str = "shared-private") -> InterestModel:
    return make_model(RunConfig(model=ModelConfig(dimension=6, rank=2, descriptor_dimension=3, sharing=sharing)), seed=0)


def random_arrays(model: InterestModel) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shared_shapes(model.config).items()}


@pytest.mark.parametrize("sharing", SHARINGS)
def test_shared_arrays_go_in_and_out_bit_for_bit_and_out_are_copies(sharing: str) -> None:
    model = model_of(sharing)
    arrays = random_arrays(model)
    model.load_shared(arrays)
    out = model.shared_arrays()
    assert {name: array.tobytes() for name, array in out.items()} == {name: array.tobytes() for name, array in arrays.items()}
    out[READER][:] = 0.0
    assert model.shared_arrays()[READER].any()


def test_an_array_of_another_shape_or_a_missing_one_is_refused() -> None:
    model = model_of()
    with pytest.raises(RuntimeError):
        model.load_shared({**random_arrays(model), WRITER: np.zeros((5, 2), np.float32)})
    with pytest.raises(KeyError):
        model.load_shared({name: array for name, array in random_arrays(model).items() if name != DESCRIPTOR})


@pytest.mark.parametrize("sharing", SHARINGS)
def test_before_training_a_passport_is_the_interest_here(sharing: str) -> None:
    model = model_of(sharing)
    model.load_shared({name: array for name, array in initial_arrays(model.config, 1).items() if name in shared_shapes(model.config)})
    if sharing == "private-writer":  # what stays begins where what travels begins
        assert not model.transfer.writer.weight.any()
    passports = torch.randn(4, 2, 6)
    assert torch.equal(model.transferred(passports, torch.randn(3)), passports)


@pytest.mark.parametrize(
    ("sharing", "kept"), [("shared", 0), ("private-bias", 6), ("shared-private", 6 * 2 * 2 + 6), ("private-writer", 6 * 2 + 6 * 3 + 6)]
)
def test_what_stays_private_is_what_was_not_declared(sharing: str, kept: int) -> None:
    model = model_of(sharing)
    travels = {id(parameter) for parameter in model.shared_parameters().values()}
    moved = [p for name, p in model.named_parameters() if name.split(".")[0] in ("transfer", "residual")]
    assert sum(p.numel() for p in moved if id(p) not in travels) == kept


def test_the_formula_by_hand() -> None:
    model = model_of("private-bias")
    model.load_shared(random_arrays(model))
    with torch.no_grad():
        model.residual.offset.weight.fill_(0.25)
    arrays = random_arrays(model)
    z, c = np.random.default_rng(1).normal(size=6), np.random.default_rng(2).normal(size=3)
    by_hand = z + arrays[WRITER] @ np.tanh(arrays[READER] @ z) + arrays[DESCRIPTOR] @ c + 0.25
    found = model.transferred(torch.tensor(z, dtype=torch.float32)[None, None], torch.tensor(c, dtype=torch.float32))
    np.testing.assert_allclose(found.detach()[0, 0], by_hand, rtol=1e-5, atol=1e-6)
