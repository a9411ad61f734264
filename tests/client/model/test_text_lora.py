"""The encoder that reads texts: what it makes of real ones, what it keeps, and what it refuses."""

from __future__ import annotations

import dataclasses
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from client import delivery, queries, rounds
from client.canary import gradients
from client.canary.interference import home_config, home_of, run_of
from client.canary.texts import invented
from client.model.encoders.text_lora import TextLoraEncoder
from client.model.encoders.transformer import TransformerEncoder
from client.model.item_tokens import NOTHING, ItemTokens, attach, tokens_of
from client.model.objective import Batch
from client.model.text_encoder import TextEncoder
from client.queries import CurrentRun
from client.state import StateFolder
from shared import wire
from shared.config import ModelConfig, RunConfig, TrainingConfig
from shared.errors import ConfigError, StateError
from shared.interest_space import InterestSpace, Moments
from tests.client.training.tiny_partner import config_of

TEXTS = ["a red apple", "green apples and pears", "a brass trombone", "sheet music for trumpet", "", "a very " * 60 + "long tale"]
MODEL = ModelConfig(encoder="text-lora", dimension=4, rank=2, descriptor_dimension=2, lora_rank=2, lora_tokens=12)
TRAINING = TrainingConfig(history_decay=0.5, max_history_items=4)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return TextEncoder(cache=None).encode(TEXTS)


@pytest.fixture(scope="module")
def space(vectors: np.ndarray) -> InterestSpace:
    return InterestSpace.from_moments([Moments.of(vectors)], MODEL.dimension)


@pytest.fixture
def encoder(space: InterestSpace) -> TextLoraEncoder:
    encoder = TextLoraEncoder(MODEL, TRAINING, torch.Generator().manual_seed(0))
    attach(encoder, ItemTokens.of(tokens_of(TEXTS, text_model="builtin", most=MODEL.lora_tokens), space))
    return encoder


def moved(encoder: TextLoraEncoder) -> TextLoraEncoder:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder


def read(encoder: TextLoraEncoder, items: list[list[int]], coordinates: np.ndarray) -> torch.Tensor:
    there = torch.tensor(items)
    found: torch.Tensor = encoder(torch.from_numpy(coordinates[np.array(items)]), torch.ones(there.shape), there)
    return found


# --- tokens ---


def test_tokens_are_those_of_the_language_model_cut_at_the_public_length_and_a_text_without_any_is_nothing() -> None:
    ids = tokens_of(["apple", "  ", "", "a b c d e f"], text_model="builtin", most=5)
    start, end = 101, 102  # [CLS] and [SEP] of MiniLM
    assert ids[0].tolist() == [start, 6207, end, NOTHING, NOTHING]
    assert ids[1].tolist() == ids[2].tolist() == [NOTHING] * 5
    assert (ids[3][0], ids[3][-1], len(ids[3])) == (start, end, 5)


def test_items_are_read_as_wide_as_the_longest_of_them() -> None:
    tokens = invented(dataclasses.replace(MODEL, lora_tokens=6), 40)
    assert tokens is not None
    ids, lengths = tokens.read(np.array([3, 9, 3]))
    assert ids.shape == (3, lengths.max())
    assert (ids[0] == ids[2]).all()
    assert all((row[length:] == 0).all() for row, length in zip(ids, lengths, strict=True))


def test_item_vectors_of_another_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="adapts the text model 'builtin'"):
        tokens_of(["apple"], text_model="some/other", most=8)


# --- what it computes ---


def test_it_reads_short_texts_as_the_text_encoder_did(encoder: TextLoraEncoder, space: InterestSpace, vectors: np.ndarray) -> None:
    assert encoder._tokens is not None
    with torch.no_grad():
        found = encoder._coordinates(*encoder._tokens.read(np.arange(5)))
    np.testing.assert_allclose(found.numpy(), space.project(vectors)[:5], atol=1e-4)
    assert not found[4].any()  # no text has no place


def test_before_training_texts_change_nothing_bit_for_bit_not_even_those_that_are_cut(
    encoder: TextLoraEncoder, space: InterestSpace, vectors: np.ndarray
) -> None:
    coordinates = space.project(vectors)
    for item in range(len(TEXTS)):
        assert read(encoder, [[item]], coordinates)[0].tolist() == coordinates[item].tolist()


def test_an_adaptor_moves_items_with_texts_and_no_others(encoder: TextLoraEncoder, space: InterestSpace, vectors: np.ndarray) -> None:
    coordinates = space.project(vectors)
    found = read(moved(encoder), [[0], [2], [4], [5]], coordinates).detach().numpy()
    distance = np.linalg.norm(found - coordinates[[0, 2, 4, 5]], axis=1)
    assert distance[[0, 1, 3]].min() > 1e-2
    assert distance[2] == 0.0


def test_looking_up_without_gradients_gives_the_same(encoder: TextLoraEncoder, space: InterestSpace, vectors: np.ndarray) -> None:
    coordinates, items = space.project(vectors), [[0, 1, 5], [5, 5, 0], [4, 2, 3]]
    learned = read(moved(encoder), items, coordinates)
    with torch.no_grad():
        looked_up = read(encoder, items, coordinates)
    assert learned.requires_grad
    np.testing.assert_allclose(looked_up.numpy(), learned.detach().numpy(), atol=2e-6)


def test_several_threads_are_answered_as_one(encoder: TextLoraEncoder, space: InterestSpace, vectors: np.ndarray) -> None:
    coordinates = space.project(vectors)
    moved(encoder)
    with torch.no_grad():
        alone = read(encoder, [[0, 1, 2]], coordinates)
    wrong: list[float] = []

    def ask() -> None:
        for _ in range(10):
            with torch.no_grad():
                wrong.append(float((read(encoder, [[0, 1, 2]], coordinates) - alone).abs().max()))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 40
    assert max(wrong) < 1e-5


# --- privacy ---


def test_two_users_who_read_the_same_item_have_gradients_of_their_own() -> None:
    """A row of the language model for each text of each user; one for each distinct text would mix them."""
    config = config_of(model=dataclasses.replace(MODEL, dimension=16, lora_tokens=6))
    model = gradients.moved_model(config, "arts")
    batch = _same_items(config)
    found = gradients.per_user_gradients(model, batch)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-6 * np.abs(found).max())  # the same example twice
    assert gradients.gradient_error(model, batch) < 1e-4
    assert gradients.coupling(model, batch.part(0, 1), batch) < 1e-5


def test_adaptors_that_see_texts_instead_of_users_are_refused() -> None:
    config = config_of(model=dataclasses.replace(MODEL, dimension=16, lora_tokens=6))
    model = gradients.moved_model(config, "arts")
    assert isinstance(model.encoder, TextLoraEncoder)
    model.encoder._rows.__class__ = _TextsForUsers
    assert gradients.gradient_error(model, _same_items(config)) == np.inf


class _TextsForUsers(type(TextLoraEncoder(MODEL, TRAINING)._rows)):  # type: ignore[misc]
    """Everybody's texts as if they were one user's."""

    @property
    def users(self) -> int:
        return 1

    @users.setter
    def users(self, _: int) -> None:
        pass


def _same_items(config: RunConfig) -> Batch:
    """Two users with the same example, and a third."""
    four = gradients._four_users(config.model)
    order = torch.tensor([1, 1, 2])
    per_user = ("history", "history_mask", "passports", "passport_mask", "targets", "target_mask", "hits", "history_items")
    return dataclasses.replace(four, **{name: getattr(four, name)[order] for name in per_user})


def test_frozen_weights_are_in_no_state_and_under_no_optimiser(encoder: TextLoraEncoder) -> None:
    assert set(encoder.state_dict()) == {f"adaptors.{number}.weight" for number in range(24)}  # six layers, query and value, A and B
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    language = encoder._language[0]
    assert {id(p) for p in language.parameters() if p.requires_grad} == {id(p) for p in encoder.parameters()}
    assert sum(p.numel() for p in language.parameters()) > 22_000_000


def test_a_piece_of_a_batch_is_small_enough_for_memory() -> None:
    small = TextLoraEncoder(dataclasses.replace(MODEL, lora_tokens=32), TrainingConfig(max_history_items=50))
    assert small.most_users == 5  # 8,192 tokens / (50 items x 32)
    assert TextLoraEncoder(dataclasses.replace(MODEL, lora_tokens=512), TrainingConfig(max_history_items=1000)).most_users == 1


# --- what it refuses ---


def test_without_texts_it_says_so(space: InterestSpace) -> None:
    fresh = TextLoraEncoder(MODEL, TRAINING)
    items = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(StateError, match="reads the texts of items"):
        fresh(torch.zeros(1, 1, 4), torch.ones(1, 1), items)
    with pytest.raises(StateError, match="none were prepared"):
        attach(fresh, None)
    attach(fresh, invented(MODEL, 10))
    with pytest.raises(StateError, match="reads the texts of items"):
        fresh(torch.zeros(1, 1, 4), torch.ones(1, 1))


def test_a_table_of_another_space_or_language_model_is_refused(space: InterestSpace) -> None:
    fresh = TextLoraEncoder(MODEL, TRAINING)
    for foreign in (
        invented(dataclasses.replace(MODEL, dimension=5), 10),
        ItemTokens.of(np.array([[40_000]], dtype=np.int32), space),  # MiniLM knows 30,522 tokens
    ):
        with pytest.raises(StateError, match="another language model or interest space"):
            attach(fresh, foreign)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # what an installation without it looks like to an import
    with pytest.raises(ConfigError, match="needs peft") as refused:
        TextLoraEncoder(MODEL, TRAINING)
    assert "isthmus[lora]" in refused.value.do


def test_other_encoders_are_left_alone() -> None:
    attach(TransformerEncoder(dataclasses.replace(MODEL, transformer_heads=2), TRAINING), None)


# --- a whole home ---


@pytest.mark.journey
def test_a_partner_trains_delivers_and_looks_up_with_texts_read_anew(tmp_path: Path) -> None:
    config = home_config(config_of(model=dataclasses.replace(MODEL, dimension=16, lora_tokens=6, lora_rank=1)))
    settings = home_of(tmp_path / "shop", config)
    update = run_of(settings, config, "run-1")
    version = CurrentRun(settings).space_version()
    data = rounds.training_data(settings)
    assert data.item_tokens is not None
    assert data.item_tokens.ids.shape == (40, 6)
    assert not data.item_tokens.ids.flags.owndata  # a memory map: a round opens it and computes nothing
    state = StateFolder(settings.at_home("state")).current()
    assert state is not None
    kept = {name for name in state.arrays if name.startswith("model/encoder")}
    assert kept == {f"model/encoder.adaptors.{number}.weight" for number in range(24)}
    delivery.deliver(settings, wire.Deliver(run_id="run-1", round=2, arrays=update.arrays))
    model = delivery.delivered_model(settings, config, update.arrays)
    _, prepared = queries.opened(settings)
    domain = delivery.Domain(settings=settings, config=config, prepared=prepared, space_version=version)
    users = np.arange(5)
    trained = domain.own_interests(model, users)
    model.encoder.load_state_dict({name: torch.zeros_like(p) for name, p in model.encoder.state_dict().items()})
    assert np.abs(trained - domain.own_interests(model, users)).max() > 1e-3  # what was trained is what is read
