"""Where the runs of a comparison lie: one folder for each variant, epsilon and seed, with what it is for in ``slot.json``.

::

    comparison.json                    what the runs have in common
    runs/VARIANT-epsE-seedS-DIGEST/
      slot.json                        variant, epsilon, seed
      .lock                            held by the process that works here
      STAMP-NAME-HASH-SPLIT/           a run folder; an interrupted one is resumed, the newest finished one counts
    STAMP-NAME-HASH-SPLIT/             runs of comparisons from before variants

A run counts when its ``metrics.json`` is there, and that is written last.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import IsthmusError, RunFolderError, StorageError

from .json_files import json_number, read_json, write_json
from .run_folder import RunFolder
from .variants import NOTHING, Variant, digest, slug

SLOT = "slot.json"
_LOCK = ".lock"
_WAIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One run of a comparison; its split seed is its seed."""

    epsilon: float
    seed: int
    variant: Variant = NOTHING

    def name(self, keys: list[str]) -> str:
        """For people: ``maml, epsilon 8, seed 0``."""
        words = self.variant.words(keys)
        return ", ".join([*([words] if words else []), f"epsilon {epsilon_name(self.epsilon)}", f"seed {self.seed}"])


def epsilon_name(epsilon: float) -> str:
    """``8``, or ``none`` for a run without privacy."""
    return "none" if epsilon == float("inf") else f"{epsilon:g}"


def slot_of(folder: Path, wanted: Wanted, base: Mapping[str, Any]) -> Path:
    """The folder of a run; its digest is over what differs from the base, so that naming a default makes no second run."""
    different = wanted.variant.difference(base)
    named = slug(f"{wanted.variant.words([key for key, _ in wanted.variant.settings])}")
    tail = digest({"settings": different, "epsilon": json_number(wanted.epsilon), "seed": wanted.seed})
    found = sorted((folder / "runs").glob(f"*-{tail}"))
    return found[0] if found else folder / "runs" / f"{named}-eps{epsilon_name(wanted.epsilon)}-seed{wanted.seed}-{tail}".lstrip("-")


def claim(slot: Path, wanted: Wanted) -> None:
    """Makes a slot, once."""
    if not (slot / SLOT).is_file():
        write_json(slot / SLOT, {"variant": dict(wanted.variant.settings), "epsilon": json_number(wanted.epsilon), "seed": wanted.seed})


def read_slot(slot: Path) -> Wanted:
    """Raises `RunFolderError` where ``slot.json`` is missing or damaged."""
    values = read_json(slot / SLOT)
    try:
        epsilon = float("inf") if values["epsilon"] is None else float(values["epsilon"])
        return Wanted(epsilon=epsilon, seed=int(values["seed"]), variant=Variant.of(values["variant"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RunFolderError(f"{slot / SLOT} is not what isthmus wrote", do="Remove this folder and run the comparison again.") from None


def slots(folder: Path) -> list[Path]:
    """Every slot that was claimed."""
    return sorted(path.parent for path in (folder / "runs").glob(f"*/{SLOT}"))


def finished_in(slot: Path) -> list[Path]:
    """Finished runs of a slot, newest first."""
    return sorted((path.parent for path in slot.glob("*/metrics.json")), reverse=True)


def unfinished_in(slot: Path) -> list[Path]:
    """Runs that broke off and whose configuration can be read, newest first."""
    return sorted((path.parent for path in slot.glob("*/config.toml") if not (path.parent / "metrics.json").exists()), reverse=True)


def older_unfinished(folder: Path, wanted: Wanted) -> list[Path]:
    """The same of a comparison from before variants, whose runs lie side by side."""
    found = []
    for path in unfinished_in(folder):
        try:
            config = RunFolder(path).config
        except IsthmusError:
            continue
        same_variant = all(dict(Variant.of_config(config).settings).get(key) == value for key, value in wanted.variant.settings)
        if same_variant and (config.privacy.epsilon, config.seed) == (wanted.epsilon, wanted.seed):
            found.append(path)
    return found


@contextmanager
def held(folder: Path, *, wait_s: float = _WAIT_S) -> Iterator[None]:
    """One process at a time works in a folder; the lock goes with the process, however it ends.

    Raises:
        RunFolderError: another process works there and does not end within ``wait_s`` seconds.
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / _LOCK).open("a")
    except OSError as error:
        do = "Make room or choose another folder with --out."
        raise StorageError(f"{folder} cannot be written: {error.strerror or error}", do=do) from None
    with opened as lock:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise RunFolderError(
                        f"another process works in {folder}", do="Let it end, or choose another folder with --out."
                    ) from None
                time.sleep(0.2)
        yield
