"""The training state of one domain: what a round starts from and what it leaves.

Flower gives a client a fresh process for each message, so the state lives on disk and belongs to a domain, never to a process. The new
state and the bytes of the reply it produced reach the disk together, in one rename (`client.durable_files`): whoever finds the key of a
message in the folder also finds the reply to it, and sends those very bytes again instead of computing anything.

Everything in here was trained under differential privacy or is public. The serving head is kept elsewhere
(`client.serving_state`), and nothing in here or in training knows where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import StateError

from .durable_files import SnapshotFolder

_ARRAYS = "arrays.safetensors"
_REPLY = "reply.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundKey:
    """Names a message once and for all: the same instruction sent again has the same key, whatever Flower's own ids are.

    Args:
        run_id: isthmus' name of the run.
        round: absolute number of the round, counted through resumes.
        layer_sha256: digest of the incoming transfer layer, in hex.
    """

    run_id: str
    round: int
    layer_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a domain keeps between rounds.

    Args:
        arrays: parameters and optimiser moments, by name.
        key: the message this state answered; None before the first round.
        reply: the bytes of that answer, None where there is none.
        space_version: the interest space all of it was trained in.
        meta: whatever else training wants to find again.
    """

    arrays: Mapping[str, np.ndarray]
    key: RoundKey | None
    reply: bytes | None
    space_version: str
    meta: Mapping[str, str | int] = field(default_factory=dict)


class StateFolder:
    """The folder of one domain's training state.

    Args:
        path: the folder; made on the first `replace`, readable by its owner only.
    """

    def __init__(self, path: Path) -> None:
        self._snapshots = SnapshotFolder(path, kind="training")

    def current(self) -> State | None:
        """The last completed state, or None before the first one.

        Raises:
            StateError: the folder is damaged or holds something else; it says what to do.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        snapshot = self._snapshots.read()
        if snapshot is None:
            return None
        try:
            meta: dict[str, Any] = snapshot.meta
            key = RoundKey(**meta["key"]) if meta["key"] is not None else None
            return State(
                arrays=load(snapshot.files[_ARRAYS]),
                key=key,
                reply=snapshot.files.get(_REPLY),
                space_version=meta["space_version"],
                meta=meta["meta"],
            )
        except (KeyError, TypeError, SafetensorError):
            raise StateError(
                "the training state was written by another version", do="Use the version that wrote it, or move the folder away."
            ) from None

    def replace(self, state: State) -> None:
        """Makes ``state`` the current one; a crash at any point leaves the old or the new, whole.

        Raises:
            StorageError: no space left, or the folder cannot be written; the old state is intact.
        """
        from safetensors.numpy import save

        files = {_ARRAYS: save({name: np.asarray(array, order="C") for name, array in state.arrays.items()})}
        if state.reply is not None:
            files[_REPLY] = state.reply
        key = (
            {"run_id": state.key.run_id, "round": state.key.round, "layer_sha256": state.key.layer_sha256}
            if state.key is not None
            else None
        )
        self._snapshots.write(files, {"key": key, "space_version": state.space_version, "meta": dict(state.meta)})

    def reply_to(self, key: RoundKey) -> bytes | None:
        """The stored answer to a message that was answered before; None where it has to be computed."""
        state = self.current()
        return state.reply if state is not None and state.key == key else None
