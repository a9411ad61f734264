"""What every interest encoder must do, whatever it reads: one suite, joined by all of them."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.canary import gradients
from client.canary.synthetic import ITEMS, coordinates, long_histories, people
from client.canary.texts import invented
from client.model.encoders import make_encoder
from client.model.encoders.recency import recency_weighted_mean
from client.model.item_tokens import attach
from client.model.methods import InterestModel
from client.model.objective import Batch
from client.training import dp_sgd, local_round
from client.training.examples import Examples
from client.training.noise import NoNoise
from client.training.sampler import PoissonSampler
from shared.config import ModelConfig, RunConfig, TrainingConfig
from shared.privacy.conformance import GRADIENT_TOLERANCE
from tests.client.training.tiny_partner import config_of

ENCODERS = ("attention", "transformer", "text-lora")
D, L, DECAY = 8, 6, 0.7
COORDINATES = torch.from_numpy(coordinates(D))
TRAINING = TrainingConfig(
    history_decay=DECAY, max_history_items=L, max_items_per_user=20, target_items=2, catalogue_negatives=32, passport_min_items=1
)

every_encoder = pytest.mark.parametrize("name", ENCODERS)


def config(name: str) -> RunConfig:
    model = ModelConfig(
        encoder=name, dimension=D, rank=2, descriptor_dimension=2, prototypes=4, transformer_heads=2, lora_rank=2, lora_tokens=5
    )
    return config_of(model=model, training=TRAINING)


def untrained(name: str, seed: int = 0) -> nn.Module:
    encoder = make_encoder(config(name), torch.Generator().manual_seed(seed))
    attach(encoder, invented(config(name).model, ITEMS))
    return encoder


def moved(name: str, seed: int = 0) -> nn.Module:
    """Away from the initial zeros."""
    encoder = untrained(name, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in (p for p in encoder.parameters() if p.requires_grad):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return encoder


def histories(users: int = 5, length: int = L, seed: int = 0, shortest: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates (users, length, D), masks and items; padding on the left."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(shortest, length + 1, size=users)
    items = torch.from_numpy(generator.integers(0, ITEMS, size=(users, length)))
    mask = torch.from_numpy(np.arange(length)[None, :] >= length - lengths[:, None])
    items[~mask] = 0
    return COORDINATES[items], mask.float(), items


def read(encoder: nn.Module, history: Tensor, mask: Tensor, items: Tensor) -> np.ndarray:
    """As training reads: with gradients at hand."""
    found: Tensor = encoder(history, mask, items)
    return found.detach().numpy()


# --- the public initial state ---


@every_encoder
def test_an_untrained_encoder_is_the_recency_weighted_mean(name: str) -> None:
    history, mask, items = histories(shortest=0)
    mean = recency_weighted_mean(history.numpy(), mask.numpy() > 0, DECAY)
    np.testing.assert_allclose(read(untrained(name), history, mask, items), mean, atol=1e-6)
    assert np.abs(read(moved(name), history, mask, items) - mean).max() > 1e-2  # and a trained one is something else


@every_encoder
def test_one_item_is_its_own_coordinate(name: str) -> None:
    items = torch.tensor([[0, 0, 7]])
    found = read(untrained(name), COORDINATES[items], torch.tensor([[0.0, 0.0, 1.0]]), items)
    np.testing.assert_allclose(found[0], COORDINATES[7], atol=1e-6)


@every_encoder
def test_the_generator_alone_names_the_initial_state(name: str) -> None:
    torch.manual_seed(1)
    one = fingerprint(untrained(name))
    torch.manual_seed(2)
    assert fingerprint(untrained(name)) == one
    assert fingerprint(untrained(name, seed=1)) != one


@every_encoder
def test_every_process_starts_from_the_same_state(name: str) -> None:
    code = (
        "from tests.contracts.test_encoders import config, fingerprint\n"
        "from client.training.local_round import initial_model\n"
        f"print(fingerprint(initial_model(config({name!r}), 'arts').encoder))"
    )
    root = str(Path(__file__).parents[2])
    elsewhere = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == fingerprint(local_round.initial_model(config(name), "arts").encoder)


def fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.requires_grad}".encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


# --- what is read, and what is not ---


@every_encoder
def test_a_history_without_items_is_the_zero_vector_with_a_gradient_of_zero(name: str) -> None:
    encoder = moved(name)
    history, mask, items = histories(3)
    mask[1] = 0.0
    interest = encoder(history, mask, items)
    assert not interest[1].any()
    assert bool(interest[[0, 2]].any(dim=1).all())
    trained = [p for p in encoder.parameters() if p.requires_grad]
    for gradient in torch.autograd.grad(interest[1].sum(), trained):
        assert not gradient.any()  # a NaN would be something


@every_encoder
def test_padding_never_matters(name: str) -> None:
    encoder = moved(name)
    history, mask, items = histories(4, length=3)
    known = read(encoder, history, mask, items)
    rubbish = torch.where(mask > 0, items, torch.full_like(items, ITEMS - 1))
    changed = torch.where(mask[..., None] > 0, history, torch.full_like(history, 9.0))
    np.testing.assert_allclose(read(encoder, changed, mask, rubbish), known, atol=2e-6)
    wider = [torch.cat([torch.full((4, 2, *part.shape[2:]), 5, dtype=part.dtype), part], dim=1) for part in (history, items)]
    masked = torch.cat([torch.zeros(4, 2), mask], dim=1)
    np.testing.assert_allclose(read(encoder, wider[0], masked, wider[1]), known, atol=2e-6)


@every_encoder
def test_items_matter_by_what_they_are_and_how_old_they_are(name: str) -> None:
    encoder = moved(name)
    items = torch.tensor([[3, 4, 5]])
    there = torch.ones(1, 3)
    known = read(encoder, COORDINATES[items], there, items)
    other = torch.tensor([[5, 4, 3]])
    assert np.abs(read(encoder, COORDINATES[other], there, other) - known).max() > 1e-3
    same = torch.tensor([[4, 4, 4]])  # in whatever order
    np.testing.assert_array_equal(read(encoder, COORDINATES[same], there, same), read(encoder, COORDINATES[same], there, same.flip(1)))


@every_encoder
def test_users_are_read_one_by_one_whoever_else_is_there(name: str) -> None:
    encoder = moved(name)
    history, mask, items = histories(6)
    together = read(encoder, history, mask, items)
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    np.testing.assert_allclose(read(encoder, history[order], mask[order], items[order]), together[order], atol=2e-6)
    for user in range(6):
        alone = read(encoder, history[user : user + 1], mask[user : user + 1], items[user : user + 1])
        np.testing.assert_allclose(alone[0], together[user], atol=2e-6)


@every_encoder
def test_a_longer_history_than_was_configured_can_be_read(name: str) -> None:
    history, mask, items = histories(3, length=L + 3, shortest=L + 3)
    assert np.isfinite(read(moved(name), history, mask, items)).all()


@every_encoder
def test_what_is_read_is_always_the_same_in_training_and_afterwards(name: str) -> None:
    encoder = moved(name)
    history, mask, items = histories()
    training = read(encoder.train(), history, mask, items)
    np.testing.assert_array_equal(read(encoder, history, mask, items), training)
    with torch.no_grad():
        np.testing.assert_allclose(read(encoder.eval(), history, mask, items), training, atol=2e-6)
    assert training.dtype == np.float32


# --- the private step ---


@every_encoder
@pytest.mark.parametrize("users", [1, 3, 9])
def test_per_user_gradients_are_those_of_one_user_at_a_time(name: str, users: int) -> None:
    error = gradients.gradient_error(moved_model(name), batch_of(name, users))
    print(f"{name}, {users} users: relative error {error:.2g}")
    assert error < GRADIENT_TOLERANCE


@every_encoder
def test_a_batch_as_large_as_its_longest_history_is_no_trap(name: str) -> None:
    batch = square(name)
    assert batch.history.shape[:2] == (batch.users, batch.users)
    assert gradients.gradient_error(moved_model(name), batch) < GRADIENT_TOLERANCE


@every_encoder
def test_a_users_gradient_does_not_change_with_the_others(name: str) -> None:
    model, some = moved_model(name), examples(name)
    alone = some(np.arange(3))
    for others in ([5], list(range(3, 12))):
        assert gradients.coupling(model, alone, examples(name)(np.array([0, 1, 2, *others]))) < 1e-5


def test_a_position_table_without_a_batch_dimension_is_refused() -> None:
    model = moved_model("transformer")
    assert gradients.gradient_error(model, square("transformer")) < GRADIENT_TOLERANCE
    embeddings = model.encoder.bert.embeddings  # type: ignore[union-attr]
    embeddings.position_embeddings = _FedOnce(embeddings.position_embeddings)
    batch = square("transformer")
    assert np.isfinite(gradients.per_user_gradients(model, batch)).all()  # silent: the shapes agree
    assert gradients.gradient_error(model, batch) > GRADIENT_TOLERANCE


class _FedOnce(nn.Module):
    """Positions as most code feeds them: one row for everybody."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.table(ids[0])  # (L, d)
        return found


@every_encoder
def test_nobody_is_a_step_like_any_other(name: str) -> None:
    encoder = untrained(name)
    assert encoder(torch.zeros(0, 3, D), torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)).shape == (0, D)
    model = moved_model(name)
    mechanism = local_round.round_mechanism(config(name))
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    taken: list[int] = []
    dp_sgd.train(
        model, torch.optim.SGD(trained, lr=1.0), users=0, make_batch=examples(name), mechanism=mechanism, divisor=1.0,
        sampler=PoissonSampler(0), noise=NoNoise(), micro_batch_users=4, on_step=lambda: taken.append(1),
    )  # fmt: skip
    assert len(taken) == mechanism.steps
    assert all(torch.equal(one, other) for one, other in zip(before, trained, strict=True))


@every_encoder
def test_what_is_priced_is_what_is_clipped_and_kept(name: str) -> None:
    model = local_round.initial_model(config(name), "arts")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    per_user = gradients.per_user_gradients(moved_model(name), batch_of(name, 2))
    dimension = local_round.round_mechanism(config(name)).dimension
    assert dimension == sum(p.numel() for p in trained.values()) == per_user.shape[1]
    rest = 2 * D + D * 2 + D * 2 + (2 * D + D * 2 + D) + 1  # transfer layer, private residual, scale
    by_hand = {
        "attention": 2 + D + 8 * D + D * 8,
        # positions; a norm in front; two layers of query, key, value, output and two of width D with biases, and two norms; E
        "transformer": L * D + 2 * D + 2 * (6 * (D * D + D) + 4 * D) + D * D,
        "text-lora": 6 * 2 * (384 * 2 + 2 * 384),  # six layers of MiniLM, query and value, rank 2
    }
    assert dimension == rest + by_hand[name]


def examples(name: str, users: int = 12) -> Examples:
    return examples_of(name, people(users, D))


def examples_of(name: str, crowd: object) -> Examples:
    data = crowd.data("arts", 2)  # type: ignore[attr-defined]
    return Examples(
        histories=data.histories, coordinates=data.coordinates, passports=data.passports, descriptor=data.descriptor, config=TRAINING,
        generator=np.random.default_rng(1),
    )  # fmt: skip


def batch_of(name: str, users: int) -> Batch:
    return examples(name)(np.arange(users))


def square(name: str) -> Batch:
    """As many users as items in the longest history."""
    batch = examples_of(name, long_histories(8, D))(np.arange(8))
    return batch.part(0, min(batch.history.shape[1], batch.users))


def moved_model(name: str) -> InterestModel:
    return gradients.moved_model(dataclasses.replace(config(name), seed=3), "arts")
