"""The serving state of one domain: what recommends, and never trains.

The refitted serving head, exact popularity and whatever else was fitted without differential privacy live here. Training code must not
import this module, nor be handed a path to its folder: a starting point that is not private would make every user's gradient depend on
every other (a test walks the import graph). A training folder is refused here, and a serving folder there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shared.errors import StateError

from .durable_files import SnapshotFolder

_ARRAYS = "arrays.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingState:
    """Arrays by name, the interest space they belong to, and notes."""

    arrays: Mapping[str, np.ndarray]
    space_version: str
    meta: Mapping[str, str | int] = field(default_factory=dict)


class ServingFolder:
    """The folder of one domain's serving state; replaced atomically, readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self._snapshots = SnapshotFolder(path, kind="serving")

    def current(self) -> ServingState | None:
        """The last completed serving state, or None before the first one.

        Raises:
            StateError: the folder is damaged or holds something else; it says what to do.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        snapshot = self._snapshots.read()
        if snapshot is None:
            return None
        try:
            return ServingState(
                arrays=load(snapshot.files[_ARRAYS]), space_version=snapshot.meta["space_version"], meta=snapshot.meta["meta"]
            )
        except (KeyError, SafetensorError):
            raise StateError("the serving state was written by another version", do="Fit the serving head again.") from None

    def replace(self, state: ServingState) -> None:
        """Makes ``state`` the current one.

        Raises:
            StorageError: no space left, or the folder cannot be written; the old state is intact.
        """
        from safetensors.numpy import save

        arrays = save({name: np.asarray(array, order="C") for name, array in state.arrays.items()})
        self._snapshots.write({_ARRAYS: arrays}, {"space_version": state.space_version, "meta": dict(state.meta)})
