"""The blend for people with a history, kept beside the prepared data that it follows from.

The trained model has no part in it. So whatever runs on the same prepared data fits it once: a run and its controls, the runs of a
comparison, one delivery after another::

    home/prepared/<fingerprint>/<space version>/warm-<digest>.npz

It is fitted on exact data: it goes when the prepared data go, and it never leaves.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from shared.errors import StateError

from .data.histories import Histories
from .durable_files import write_file
from .model import warm_fit
from .model.warm_head import WarmHead
from .training.noise import keyed_generator

_RULE = 1
"""Of fitting: a change of `client.model.warm_fit` takes the next number, so that no older fit is taken for one by the new rule."""

_ITEMS_AT_A_TIME = 2**24


def kept_or_fitted(folder: Path, space_version: str, domain: str, *, seed: int, max_history: int) -> WarmHead:
    """The blend that was fitted on these data before, or a new one, which is kept. A damaged file is replaced.

    Args:
        folder: of the prepared data; its name is that of its content. It holds the coordinates in this space.
        space_version: of the coordinates that the blend reads.
        domain: names the generator that draws the people who judge.
        seed: of the run.
        max_history: latest items of a history that are read.
    Raises:
        StorageError: it cannot be kept.
    """
    what = [_RULE, domain, seed, max_history]
    path = folder / space_version / f"warm-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.npz"
    kept = _read(path)
    if kept is not None:
        return kept
    head = _fitted(folder, space_version, domain, seed, max_history)
    written = io.BytesIO()
    np.savez(written, **head.to_arrays())  # type: ignore[arg-type]  # its own keyword is no name of an array here
    write_file(path, written.getvalue())
    return head


def _read(path: Path) -> WarmHead | None:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return WarmHead.from_arrays(dict(arrays))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, StateError):
        return None


def _fitted(folder: Path, space_version: str, domain: str, seed: int, max_history: int) -> WarmHead:
    training = Histories.open(folder / "training")
    coordinates = np.load(folder / space_version / "coordinates.npy")
    counts = np.zeros(len(coordinates), dtype=np.int64)
    for start in range(0, len(training.items), _ITEMS_AT_A_TIME):  # the histories of ten million users do not fit into memory
        counts += np.bincount(training.items[start : start + _ITEMS_AT_A_TIME], minlength=len(coordinates))
    generator = keyed_generator(seed, domain, "head", "warm")
    return warm_fit.fit(training, coordinates, counts, generator=generator, max_history=max_history)
