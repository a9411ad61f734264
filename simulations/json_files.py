"""JSON documents of a run folder: written atomically, never with a NaN, read with errors that say what to do."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import RunFolderError, StorageError


def json_number(value: float) -> float | None:
    """A number that JSON can hold: ``None`` for nan and infinities."""
    return float(value) if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as plain values; what is not finite becomes ``None``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    return json_number(float(value)) if isinstance(value, (float, np.floating)) else value


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes one JSON document, atomically and without any NaN.

    Raises:
        StorageError: when it cannot be written.
    """
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a `RunFolderError` says what is wrong with the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing", do="Finish the run first: isthmus-simulate run --resume FOLDER.") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise RunFolderError(f"{path} is not JSON", do="Run the scenario again.") from None
    if not isinstance(values, dict):
        raise RunFolderError(f"{path} is not a JSON object", do="Run the scenario again.")
    return values


def replace_file(path: Path, write: Callable[[Any], Any]) -> None:
    """Writes beside the file, forces it to the disk, then takes its name: a reader sees the old file or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}", do="Make room or choose another folder with --out."
        ) from None
