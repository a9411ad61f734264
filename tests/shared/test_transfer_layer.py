"""The transfer layer: the identity at the start, a low-rank residual after."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.config import ModelConfig
from shared.transfer_layer import DESCRIPTOR, READER, WRITER, TransferLayer, initial_arrays, shared_shapes

MODEL = ModelConfig(dimension=6, rank=2, descriptor_dimension=3)


def layer_of(arrays: dict[str, np.ndarray]) -> TransferLayer:
    layer = TransferLayer(MODEL)
    layer.load_state_dict({f"{name.removeprefix('transfer.')}.weight": torch.from_numpy(array) for name, array in arrays.items()})
    return layer


def random_arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shared_shapes(MODEL).items()}


def test_the_initial_layer_is_the_identity() -> None:
    interest = torch.randn(4, 2, 6)
    assert torch.equal(layer_of(initial_arrays(MODEL, 3))(interest, torch.randn(4, 2, 3)), interest)


def test_the_layer_is_the_formula() -> None:
    arrays = random_arrays()
    z, c = np.random.default_rng(1).normal(size=6), np.random.default_rng(2).normal(size=3)
    by_hand = z + arrays[WRITER] @ np.tanh(arrays[READER] @ z) + arrays[DESCRIPTOR] @ c
    found = layer_of(arrays)(torch.tensor(z, dtype=torch.float32), torch.tensor(c, dtype=torch.float32))
    np.testing.assert_allclose(found.detach(), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sharing", "method", "names"),
    [
        ("shared", "residual", {READER, WRITER, DESCRIPTOR}),
        ("shared-private", "residual", {READER, WRITER, DESCRIPTOR}),
        ("private-bias", "residual", {READER, WRITER, DESCRIPTOR}),
        ("private-writer", "residual", {READER}),
        ("shared", "adversarial", {READER, WRITER, DESCRIPTOR, "discriminator"}),
        ("private-writer", "maml", {READER, "start.offset", "start.gate"}),
        ("shared", "knowledge-mf", {READER, WRITER, DESCRIPTOR, "knowledge"}),
    ],
)
def test_method_and_sharing_declare_what_leaves(sharing: str, method: str, names: set[str]) -> None:
    model = ModelConfig(dimension=6, rank=2, descriptor_dimension=3, sharing=sharing, method=method)
    assert set(shared_shapes(model)) == names
    assert {name: array.shape for name, array in initial_arrays(model, 0).items()} == shared_shapes(model)


def test_the_seed_names_the_reader() -> None:
    first, second, other = (initial_arrays(MODEL, seed)[READER] for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert all(array.dtype == np.float32 for array in initial_arrays(MODEL, 1).values())
