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
    layer.load_arrays(arrays)
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
    np.testing.assert_allclose(found.detach(), by_hand, rtol=1e-5)


def test_what_it_shares_is_every_weight_that_it_has() -> None:
    layer = layer_of(random_arrays())
    assert {name: array.shape for name, array in layer.to_arrays().items()} == shared_shapes(MODEL)
    assert sum(array.size for array in layer.to_arrays().values()) == sum(p.numel() for p in layer.parameters())


def test_arrays_go_in_and_out_bit_for_bit_and_out_are_copies() -> None:
    arrays = random_arrays()
    layer = layer_of(arrays)
    out = layer.to_arrays()
    assert all(out[name].tobytes() == arrays[name].tobytes() for name in arrays)
    out[READER][:] = 0.0
    assert layer.to_arrays()[READER].any()


def test_an_array_of_another_shape_or_a_missing_one_is_refused() -> None:
    wrong = {**random_arrays(), WRITER: np.zeros((5, 2), np.float32)}
    with pytest.raises(RuntimeError):
        layer_of(wrong)
    with pytest.raises(KeyError):
        layer_of({name: array for name, array in random_arrays().items() if name != DESCRIPTOR})


def test_the_seed_names_the_reader() -> None:
    first, second, other = (initial_arrays(MODEL, seed)[READER] for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert all(array.dtype == np.float32 for array in initial_arrays(MODEL, 1).values())
