"""The text encoder in int8: the graph is the model's, the loss is small, and the default encoder knows nothing of it."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from client.model.onnx_text_encoder import OnnxTextEncoder, bert_graph, make_text_encoder, quantised
from client.model.text_encoder import TextEncoder
from shared.errors import ConfigError

TEXTS = [
    "watercolour paper cold pressed 300 g",
    "ink cartridge for laser printers, black, two in a pack",
    "Aquarellpapier, rau, 300 g",
    "x",
    "水彩紙",
    "a very long text " * 60_000,  # a megabyte; what is beyond 64 tokens is cut off
    "",
]


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return TextEncoder(cache=None, threads=1).encode(TEXTS)


@pytest.fixture(scope="module")
def encoder() -> OnnxTextEncoder:
    """The real model in int8, made once."""
    return OnnxTextEncoder(cache=None, threads=1)


def small_bert(**changes: Any) -> Any:
    """A BERT of two layers with random weights and biases."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(3)
    numbers = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    model = BertModel(BertConfig(**(numbers | changes))).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(std=0.3)
    return model


@pytest.fixture
def ids_and_mask() -> tuple[np.ndarray, np.ndarray]:
    """Four texts of 1, 4, 7 and 9 tokens."""
    ids = np.random.default_rng(0).integers(1, 50, (4, 9))
    mask = (np.arange(9)[None, :] < np.array([1, 4, 7, 9])[:, None]).astype(np.int64)
    return ids, mask


def run(graph: bytes, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"ids": ids, "mask": mask})[0])


def test_the_graph_computes_what_the_model_does(ids_and_mask: tuple[np.ndarray, np.ndarray]) -> None:
    ids, mask = ids_and_mask
    model = small_bert()
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
    found = run(bert_graph(model).SerializeToString(), ids, mask)
    there = mask.astype(bool)
    np.testing.assert_allclose(found[there], expected[there], atol=2e-5)


def test_padding_changes_nothing(ids_and_mask: tuple[np.ndarray, np.ndarray]) -> None:
    ids, mask = ids_and_mask
    graph = bert_graph(small_bert()).SerializeToString()
    other = np.where(mask == 1, ids, 7)
    np.testing.assert_allclose(run(graph, ids, mask)[mask == 1], run(graph, other, mask)[mask == 1], atol=1e-6)


def test_matrices_are_kept_in_seven_bits_so_that_no_processor_overflows() -> None:
    graph = onnx.load_from_string(quantised(bert_graph(small_bert()))).graph
    matrices = [onnx.numpy_helper.to_array(constant) for constant in graph.initializer if constant.data_type == onnx.TensorProto.INT8]
    large = [matrix for matrix in matrices if matrix.ndim == 2]
    assert len(large) == 2 * 4  # a layer has four: queries, keys and values together, and three more
    assert all(np.abs(matrix.astype(int)).max() <= 64 for matrix in large)
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 8


def test_making_the_graph_leaves_logging_alone(capfd: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger().handlers)
    quantised(bert_graph(small_bert()))
    assert logging.getLogger().handlers == before
    assert capfd.readouterr().err == ""


@pytest.mark.journey
def test_vectors_in_int8_are_near_those_in_float32_and_not_the_same(encoder: OnnxTextEncoder, plain: np.ndarray) -> None:
    found = encoder.encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 1, 1, 1, 0], atol=1e-6)
    cosines = (found * plain).sum(axis=1)[:-1]
    assert cosines.min() > 0.95
    assert cosines.max() < 0.9999
    nearest = (found[:3] @ found[:3].T - 2 * np.eye(3)).argmax(axis=1)
    assert nearest[0] == (plain[:3] @ plain[:3].T - 2 * np.eye(3)).argmax(axis=1)[0]


@pytest.mark.journey
def test_each_precision_has_a_cache_of_its_own(encoder: OnnxTextEncoder, plain: np.ndarray, tmp_path: Path) -> None:
    cached = OnnxTextEncoder(cache=tmp_path, threads=1)
    cached.__dict__["_loaded"] = encoder._loaded
    first = cached.encode(TEXTS)
    after = TextEncoder(cache=tmp_path, threads=1).encode(TEXTS)
    np.testing.assert_allclose(after, plain, atol=1e-6)  # nothing of int8 came out of the cache
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted([cached.model_hash[:32], TextEncoder(cache=None).model_hash[:32]])
    again = OnnxTextEncoder(cache=tmp_path)
    again.__dict__["_loaded"] = None  # has nothing to encode
    np.testing.assert_array_equal(again.encode(TEXTS), first)


def test_the_default_is_the_encoder_itself() -> None:
    assert type(make_text_encoder("builtin", cache=None)) is TextEncoder
    assert type(make_text_encoder("builtin", "int8", cache=None)) is OnnxTextEncoder
    assert make_text_encoder("builtin", cache=None).model_hash == TextEncoder(cache=None).model_hash
    assert OnnxTextEncoder(cache=None).model_hash != TextEncoder(cache=None).model_hash
    assert OnnxTextEncoder(cache=None, max_tokens=32).model_hash != OnnxTextEncoder(cache=None).model_hash


def test_another_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="no precision 'int4'"):
        make_text_encoder("builtin", "int4", cache=None)


def test_a_model_that_is_not_bert_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be computed in int8"):
        bert_graph(small_bert(hidden_act="relu"))


def test_without_the_package_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from client.model.onnx_text_encoder import OnnxTextEncoder; from shared.errors import ConfigError\n"
        "try: OnnxTextEncoder(cache=None).encode(['paper'])\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "isthmus[onnx]" in done.stdout
