r"""The text encoder in eight bits: the same language model as an ONNX graph whose matrices are int8, run by ONNX Runtime.

The graph is BERT's (Devlin et al. 2019; Vaswani et al. 2017, sect. 3.2), written here node by node from the weights that `TextEncoder`
loads: queries, keys and values in one product. Its matrices W are kept as :math:`s_c \, C_{:c}` with C in -64 ... 64 and a step a column;
what they are multiplied with is quantised on the fly, a step a batch (dynamic quantisation; Jacob et al. 2018, sect. 2). Seven bits, not
eight, because processors without VNNI add two products of 8-bit numbers in 16 bits, which overflow: so a vector does not depend on them.

Vectors differ a little from those in float32 and have a cache of their own. As the step of a batch depends on its texts, so do the last
digits of a vector; what the cache gives back is what was first encoded.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import ConfigError

from .text_encoder import TextEncoder

if TYPE_CHECKING:
    import torch

FLOAT32, INT8 = "float32", "int8"
PRECISIONS = (FLOAT32, INT8)
"""What a language model may be computed in."""
RECIPE = "isthmus int8 text vectors 1: BERT, opset 17, matrices int8 by column in 7 bits, activations uint8 by batch"
"""Part of the model hash: a change of how the graph is made must change this line."""
_OPSET, _MASKED = 17, -1e9


def make_text_encoder(model: str, precision: str = FLOAT32, **options: Any) -> TextEncoder:
    """The text encoder that a setting names.

    Args:
        model: see `TextEncoder`.
        precision: one of `PRECISIONS`.
        options: as `TextEncoder` takes them.
    Raises:
        ConfigError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"there is no precision '{precision}' of the text model", do=f"It is one of: {', '.join(PRECISIONS)}.")
    return (TextEncoder if precision == FLOAT32 else OnnxTextEncoder)(model, **options)


class OnnxTextEncoder(TextEncoder):
    """Encodes texts as unit rows with int8 matrices; for BERT models. Arguments as for `TextEncoder`."""

    @cached_property
    def model_hash(self) -> str:
        """Another one than that of the model in float32."""
        return hashlib.sha256(f"{RECIPE}\n{super().model_hash}".encode()).hexdigest()

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The tokenizer, and the graph behind the interface of the model.

        Raises:
            ConfigError: ONNX Runtime is not installed, or the model is not BERT.
        """
        runtime = _runtime()
        tokenizer, model = super()._loaded
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the library deprecates within itself
            graph = quantised(bert_graph(model))
        return tokenizer, _Session(runtime, graph, self.threads)


class _Session:
    """A graph that is called as the model it was made from."""

    def __init__(self, runtime: Any, graph: bytes, threads: int | None) -> None:
        import torch

        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # beside other work, waiting threads would take its time
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        import torch

        (hidden,) = self._session.run(None, {"ids": input_ids.numpy(), "mask": attention_mask.numpy()})
        return SimpleNamespace(last_hidden_state=torch.from_numpy(hidden))


def bert_graph(model: Any) -> Any:
    """The ONNX graph of a BERT model, in float32: (batch, tokens) ``ids`` and ``mask``, int64, to ``hidden`` (batch, tokens, dimension).

    Args:
        model: a `transformers` model, in evaluation mode.
    Raises:
        ConfigError: it is not BERT with absolute positions and GELU.
    """
    import onnx
    from onnx import TensorProto, helper

    config = model.config
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if (config.model_type, config.hidden_act, positions) != ("bert", "gelu", "absolute"):
        raise ConfigError(
            f"a text model of type '{config.model_type}' cannot be computed in int8",
            do="Choose a BERT model, or text_precision = 'float32'.",
        )
    graph = _Bert({name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}, config)
    graph.build()
    made = helper.make_graph(
        graph.nodes,
        "bert",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "tokens", config.hidden_size])],
        graph.constants,
    )
    done = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    helper.set_model_props(
        done, {"onnx.quant.pre_process": "onnxruntime.quant"}
    )  # nothing to fold: or the quantiser sets up logging to say so
    onnx.checker.check_model(done)
    return done


def quantised(model: Any) -> bytes:
    """An ONNX model with the constant matrices of its products in int8."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
        )
        return target.read_bytes()


class _Bert:
    """Nodes and constants of a graph while it is written."""

    def __init__(self, weights: dict[str, np.ndarray], config: Any) -> None:
        self._weights = weights
        self._config = config
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def build(self) -> None:
        """From ``ids`` and ``mask`` to ``hidden``."""
        hidden, bias = self._embedded(), self._bias()
        for layer in range(self._config.num_hidden_layers):
            last = layer == self._config.num_hidden_layers - 1
            hidden = self._layer(hidden, bias, f"encoder.layer.{layer}", "hidden" if last else None)

    def _embedded(self) -> str:
        words = self._node("Gather", self._weight("embeddings.word_embeddings.weight"), "ids")
        length = self._node("Slice", self._node("Shape", "ids"), self._ints([1]), self._ints([2]))
        first = self._weights["embeddings.position_embeddings.weight"] + self._weights["embeddings.token_type_embeddings.weight"][0]
        places = self._node("Slice", self._constant(first), self._ints([0]), length, self._ints([0]))
        return self._normed(self._node("Add", words, places), "embeddings.LayerNorm")

    def _bias(self) -> str:
        """0 for a token, -1e9 for padding: (batch, 1, 1, tokens)."""
        padding = self._node("Sub", self._constant(np.float32(1)), self._node("Cast", "mask", to=1))
        return self._node("Unsqueeze", self._node("Mul", padding, self._constant(np.float32(_MASKED))), self._ints([1, 2]))

    def _layer(self, hidden: str, bias: str, name: str, output: str | None) -> str:
        attended = self._linear(self._attended(hidden, bias, f"{name}.attention.self"), [f"{name}.attention.output.dense"])
        hidden = self._normed(self._node("Add", attended, hidden), f"{name}.attention.output.LayerNorm")
        inner = self._linear(hidden, [f"{name}.intermediate.dense"])
        erf = self._node("Erf", self._node("Div", inner, self._constant(np.float32(np.sqrt(2.0)))))
        open_gate = self._node("Mul", self._node("Add", erf, self._constant(np.float32(1))), self._constant(np.float32(0.5)))
        gelu = self._node("Mul", inner, open_gate)  # x (1 + erf(x / sqrt 2)) / 2
        return self._normed(self._node("Add", self._linear(gelu, [f"{name}.output.dense"]), hidden), f"{name}.output.LayerNorm", output)

    def _attended(self, hidden: str, bias: str, name: str) -> str:
        heads = self._config.num_attention_heads
        size = self._config.hidden_size // heads
        together = self._linear(hidden, [f"{name}.{part}" for part in ("query", "key", "value")])  # (batch, tokens, 3 dimension)
        split = self._node("Reshape", together, self._ints([0, 0, 3 * heads, size]))
        turned = self._node("Transpose", split, perm=[0, 2, 1, 3])  # (batch, 3 heads, tokens, size)
        query, key, value = self._nodes(3, "Split", turned, self._ints([heads] * 3), axis=1)
        scores = self._node("MatMul", query, self._node("Transpose", key, perm=[0, 1, 3, 2]))
        scaled = self._node("Div", scores, self._constant(np.float32(np.sqrt(size))))
        weights = self._node("Softmax", self._node("Add", scaled, bias), axis=-1)
        mixed = self._node("Transpose", self._node("MatMul", weights, value), perm=[0, 2, 1, 3])
        return self._node("Reshape", mixed, self._ints([0, 0, heads * size]))

    def _linear(self, hidden: str, names: list[str]) -> str:
        matrix = np.concatenate([self._weights[f"{name}.weight"] for name in names]).T
        bias = np.concatenate([self._weights[f"{name}.bias"] for name in names])
        return self._node("Add", self._node("MatMul", hidden, self._constant(matrix)), self._constant(bias))

    def _normed(self, hidden: str, name: str, output: str | None = None) -> str:
        weight, bias, epsilon = self._weight(f"{name}.weight"), self._weight(f"{name}.bias"), float(self._config.layer_norm_eps)
        return self._node("LayerNormalization", hidden, weight, bias, output=output, axis=-1, epsilon=epsilon)

    def _node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node_{len(self.nodes)}", **attributes))
        return name

    def _nodes(self, count: int, kind: str, *inputs: str, **attributes: Any) -> list[str]:
        from onnx import helper

        names = [f"{kind}_{len(self.nodes)}_{part}" for part in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"node_{len(self.nodes)}", **attributes))
        return names

    def _weight(self, name: str) -> str:
        return self._constant(self._weights[name])

    def _ints(self, values: list[int]) -> str:
        return self._constant(np.array(values, dtype=np.int64))

    def _constant(self, values: Any) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), name))
        return name


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401  # the graph is written with it
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            "a text model in int8 needs ONNX Runtime, which is not installed", do="Install isthmus[onnx], or text_precision = 'float32'."
        ) from error
    return onnxruntime
