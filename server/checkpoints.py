"""Numbered transfer layers on disk, each with all that a run needs to go on from there.

::

    transfer_layer/
      round-0000.safetensors     the arrays: layer/NAME, space/NAME, descriptor/DOMAIN, strategy/NAME
      round-0000.json            the manifest: run, round, configuration, receipts, size and SHA-256 of the arrays, SHA-256 of itself

Round 0 is the interest space, the descriptors and the initial layer. A checkpoint exists once its manifest does: both files are written
under other names, synced and then renamed, arrays first, so that a crash or a full disk leaves the previous checkpoint intact. Should a
power cut turn the two renames around, the manifest's digest of the arrays tells.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from shared.config import RunConfig
from shared.errors import FederationError, IsthmusError, StorageError
from shared.flushing import flush
from shared.interest_space import InterestSpace
from shared.privacy.receipts import SignedReceipt
from shared.wire import layer_sha256

SCHEMA = 2
_MANIFEST = re.compile(r"round-(\d{4,})\.json")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A run after a round.

    Args:
        layer: the transfer layer, name -> float32.
        descriptors: (d_c,) of each domain that gave one.
        strategy: what the aggregation strategy remembers.
        receipts: the last receipt of each domain.
    """

    run_id: str
    round: int
    config: RunConfig
    space: InterestSpace
    layer: dict[str, np.ndarray]
    descriptors: dict[str, np.ndarray] = field(default_factory=dict)
    strategy: dict[str, np.ndarray] = field(default_factory=dict)
    receipts: dict[str, SignedReceipt] = field(default_factory=dict)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file as a whole or not at all.

    Raises:
        StorageError: when it cannot be written; what was there before still is.
    """
    _replace_files({path: data})


def _replace_files(files: Mapping[Path, bytes]) -> None:
    """Writes files of one folder, each as a whole or not at all; they appear in the order given."""
    temporary = {path: path.with_name(f".{path.name}.part") for path in files}
    path = next(iter(files))
    try:
        for path, data in files.items():
            temporary[path].write_bytes(data)
        flush(temporary.values())
        for path in files:
            temporary[path].replace(path)
        flush([path.parent])
    except OSError as error:
        for left_over in temporary.values():
            left_over.unlink(missing_ok=True)
        raise StorageError(
            f"{path} cannot be written ({error.strerror})", do="Make room, then resume: the previous checkpoint is intact."
        ) from None


class Checkpoints:
    """The folder of one run's checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes one checkpoint and returns the path of its arrays.

        Raises:
            StorageError: when the disk is full or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be made ({error.strerror})", do="Choose another run folder.") from None
        data = save_arrays(_flat(checkpoint))
        path = self.folder / f"round-{checkpoint.round:04d}.safetensors"
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "run_id": checkpoint.run_id,
            "round": checkpoint.round,
            "config_hash": checkpoint.config.config_hash,
            "config": checkpoint.config.to_toml(),
            "space_version": checkpoint.space.version,
            "layer_sha256": layer_sha256(checkpoint.layer),
            "receipts": {domain: receipt.to_record() for domain, receipt in sorted(checkpoint.receipts.items())},
            "arrays_bytes": len(data),
            "arrays_sha256": hashlib.sha256(data).hexdigest(),
        }
        manifest["manifest_sha256"] = _manifest_digest(manifest)
        _replace_files({path: data, path.with_suffix(".json"): (json.dumps(manifest, indent=1) + "\n").encode()})
        return path

    def rounds(self) -> list[int]:
        """Rounds that have a manifest, ascending; whether they are whole is found out by `load`."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for entry in self.folder.iterdir() if (match := _MANIFEST.fullmatch(entry.name)))

    def load(self, round: int) -> Checkpoint:
        """Reads one checkpoint.

        Raises:
            StorageError: when a file is missing, damaged, or does not belong to the manifest.
        """
        path = self.folder / f"round-{round:04d}.json"
        try:
            manifest = json.loads(path.read_bytes())
            if not isinstance(manifest, dict) or manifest.get("manifest_sha256") != _manifest_digest(manifest):
                raise ValueError("its manifest was changed")
            data = path.with_suffix(".safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() != manifest["arrays_sha256"]:
                raise ValueError("its arrays are not those of the manifest")
            if manifest["schema"] != SCHEMA or manifest["round"] != round:
                raise ValueError("another version wrote it, or it was renamed")
            return _checkpoint(manifest, load_arrays(data))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, IsthmusError) as error:
            raise StorageError(f"checkpoint {path} cannot be used: {error}", do="Resume from an older one.") from None

    def newest(self) -> tuple[Checkpoint, list[str]]:
        """The newest checkpoint that is whole, and what is wrong with each newer one.

        Raises:
            FederationError: when there is none.
        """
        damaged: list[str] = []
        for round in reversed(self.rounds()):
            try:
                return self.load(round), damaged
            except StorageError as error:
                damaged.append(error.what)
        raise FederationError(
            "\n  ".join([f"nothing to resume in {self.folder}", *damaged]), do="Start the run anew, in a folder of its own."
        )


def _flat(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    groups: dict[str, Mapping[str, np.ndarray]] = {
        "layer": checkpoint.layer,
        "space": checkpoint.space.to_arrays(),
        "descriptor": checkpoint.descriptors,
        "strategy": checkpoint.strategy,
    }
    return {f"{group}/{name}": np.ascontiguousarray(array) for group, arrays in groups.items() for name, array in arrays.items()}


def _checkpoint(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Checkpoint:
    groups: dict[str, dict[str, np.ndarray]] = {"layer": {}, "space": {}, "descriptor": {}, "strategy": {}}
    for name, array in arrays.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = array
    if layer_sha256(groups["layer"]) != manifest["layer_sha256"]:
        raise ValueError("its transfer layer is not that of the manifest")
    return Checkpoint(
        run_id=manifest["run_id"],
        round=manifest["round"],
        config=RunConfig.from_toml(manifest["config"]),
        space=InterestSpace.from_arrays(groups["space"]),
        layer=groups["layer"],
        descriptors=groups["descriptor"],
        strategy=groups["strategy"],
        receipts={domain: SignedReceipt.from_record(values) for domain, values in manifest["receipts"].items()},
    )


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
