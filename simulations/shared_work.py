"""What runs of a comparison need not do again: prepared data, and the rows of methods that train nothing.

::

    cache/prepared/DOMAIN-DIGEST/   arrays, pseudonym key and external ids of a domain; hard links into the runs' homes
    cache/controls/DIGEST.npz       ranks by popularity, text, head-only and the pooled ridge, for one direction and one role

Both are found by what they were made of and checked against what is asked for; whatever does not fit is made anew. Users stand in another
order in every home, because pseudonyms differ, so rows are kept and found by person.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.durable_files import write_file
from client.evaluation import HeldOut
from client.partner_data import without_places
from client.settings import ClientSettings
from shared.config import RunConfig
from shared.errors import RunFolderError

from .json_files import replace_file
from .ranks import RanksFile, read_ranks, write_ranks
from .run_folder import RunFolder

_TABLES = ("items", "interactions", "links")
_KEYS = ("pseudonyms.key", "external_ids.parquet")
_STAMPS = "stamps.json"
_CLOSE = 1e-4
"""Largest difference of a coordinate between interests that count as the same; sums in another order differ by less."""


@dataclass(frozen=True, slots=True)
class SharedWork:
    """The cache of a comparison. Several processes may use it: an entry takes its name when it is whole."""

    folder: Path

    def lend(self, folder: RunFolder, settings: Sequence[ClientSettings], config: RunConfig) -> None:
        """Puts what is prepared already into the homes of a new run, so that preparation only opens it."""
        for one in settings:
            entry = self._prepared(one, config)
            if not (entry / _STAMPS).is_file() or one.at_home("prepared").exists():
                continue
            for name, stamp in json.loads((entry / _STAMPS).read_text(encoding="utf-8")).items():
                path = _table(one, name)
                if path is not None and path.is_relative_to(folder.path.absolute()):  # never a file that is not the run's own
                    os.utime(path, ns=(stamp, stamp))
            for name in _KEYS:
                write_file(one.at_home("keys") / name, (entry / name).read_bytes())
            _linked_copy(entry / "prepared", one.at_home("prepared"))

    def keep(self, settings: Sequence[ClientSettings], config: RunConfig) -> None:
        """Keeps what was prepared for the runs to come, and of what is kept already, the files that came since."""
        for one in settings:
            entry = self._prepared(one, config)
            if entry.exists():
                _link_new(one.at_home("prepared"), entry / "prepared", entry.with_name(f".{entry.name}.{os.getpid()}"))
                continue
            new = entry.with_name(f".{entry.name}.{os.getpid()}")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            _linked_copy(one.at_home("prepared"), new / "prepared")
            for name in _KEYS:
                shutil.copy2(one.at_home("keys") / name, new / name)
            stamps = {name: path.stat().st_mtime_ns for name in _TABLES if (path := _table(one, name)) is not None}
            (new / _STAMPS).write_text(json.dumps(stamps), encoding="utf-8")
            with contextlib.suppress(OSError):  # another process was faster
                new.rename(entry)
            shutil.rmtree(new, ignore_errors=True)

    def forget_prepared(self) -> None:
        """Deletes what can be made again; the ranks of controls stay."""
        shutil.rmtree(self.folder / "prepared", ignore_errors=True)

    def rows(self, what: Sequence[Any], people: HeldOut, make: Callable[[], RanksFile]) -> RanksFile:
        """Ranks of controls for these people, kept or made.

        Args:
            what: plain values that name direction, role, data, split and settings.
            people: whom the rows are about.
            make: ranks the people by every control.
        """
        order = by_person(people.persons)
        truth = hashlib.sha256(people.truth[_flat(people.offsets, order)].tobytes()).hexdigest()
        path = self.folder / "controls" / f"{hashlib.sha256(json.dumps([*what, truth]).encode()).hexdigest()[:24]}.npz"
        kept = _fitting(path, people)
        if kept is not None:
            return kept
        made = make()
        write_ranks(path, rearranged(made, order))
        replace_file(path.with_suffix(".interests.npy"), lambda file: np.save(file, people.interests[order]))
        return made

    def _prepared(self, settings: ClientSettings, config: RunConfig) -> Path:
        """By the content of the files, since those of a run folder are written anew each time."""
        key = settings.at_home("keys") / _KEYS[0]
        what = [
            [_sha256(path) if (path := _table(settings, name)) is not None else None for name in _TABLES],
            without_places(settings),
            dataclasses.asdict(settings.benchmark),
            settings.text_model,
            config.training.max_items_per_user,
            "system" if config.privacy.private else key.read_bytes().hex(),  # that of a test build follows from its seed
        ]
        name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        return self.folder.absolute() / "prepared" / f"{settings.domain}-{name}"


def rearranged(ranks: RanksFile, order: np.ndarray) -> RanksFile:
    """The same with its users in another order.

    Args:
        order: (n_users,) rows of ``ranks``.
    """
    flat = _flat(ranks.offsets, order)
    return RanksFile(
        offsets=np.concatenate([[0], np.cumsum(np.diff(ranks.offsets)[order])]).astype(np.int64),
        users=ranks.users[order],
        popularity=ranks.popularity,
        ranks={method: found[flat] for method, found in ranks.ranks.items()},
        top={method: found[order] for method, found in ranks.top.items()},
    )


def by_person(persons: np.ndarray) -> np.ndarray:
    """(n,) order that sorts (n, 16) keys."""
    return np.lexsort(np.asarray(persons).T[::-1])


def _flat(offsets: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Where the items of users in another order lie in the flat arrays."""
    lengths = np.diff(offsets)[order]
    ends = np.cumsum(lengths)
    return np.repeat(np.asarray(offsets)[:-1][order] - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def _fitting(path: Path, people: HeldOut) -> RanksFile | None:
    """Kept rows in the order of ``people``; None where they are of other people, of other items, or damaged."""
    try:
        kept, interests = read_ranks(path), np.load(path.with_suffix(".interests.npy"))
    except (RunFolderError, OSError, ValueError):
        return None
    if kept.users.shape != people.persons.shape or interests.shape != people.interests.shape:
        return None
    order = np.empty(people.users, dtype=np.int64)
    order[by_person(people.persons)] = by_person(kept.users)
    found = rearranged(kept, order)
    same = (
        np.array_equal(found.users, people.persons)
        and np.array_equal(found.offsets, people.offsets)
        and np.allclose(interests[order], people.interests, rtol=0.0, atol=_CLOSE)
    )
    return found if same else None


def _table(settings: ClientSettings, name: str) -> Path | None:
    named = getattr(settings.data, name)
    return settings.path(named) if named else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link_new(source: Path, target: Path, aside: Path) -> None:
    """Links into ``target`` what it lacks of ``source``; nothing where a file system has no links.

    Others read ``target`` meanwhile: a folder takes its place when it is whole.

    Args:
        aside: where a folder is made, on the same file system and out of their sight.
    """
    for path in source.iterdir():
        there = target / path.name
        with contextlib.suppress(OSError):  # another process was faster
            if path.is_dir() and there.is_dir():
                _link_new(path, there, aside)
            elif path.is_dir():
                shutil.rmtree(aside, ignore_errors=True)
                shutil.copytree(path, aside, copy_function=os.link)
                aside.rename(there)
            elif not there.exists():
                os.link(path, there)
    shutil.rmtree(aside, ignore_errors=True)


def _linked_copy(source: Path, target: Path) -> None:
    """Folders anew, files as hard links: what is prepared is never written to again. A copy where a file system has no links."""

    def link(one: str, other: str) -> str:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)
        return other

    new = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source, new, copy_function=link)
    new.rename(target)
