"""The partner's files -> arrays on disk, once for each version of the files. A round then only opens memory maps.

::

    home/prepared/<fingerprint>/
      everyone/         histories of all users
      training/         histories of training users (the same, without those whom a benchmark holds out)
      later/            in a benchmark with a cut in time: what happened after it, which is in neither of them
      people.npz        training rows, roles, links
      text.npy          (n_items, D) text vectors
      tokens.npy        (n_items, T) tokens of texts, where the run's encoder reads them
      catalogue.json    item ids, hash of the catalogue
      said.json         what the partner was told about the files
      <space version>/  coordinates.npy, and the arrays of the space
    home/prepared/spaces/
      <space version>.npz   the interest spaces that were sent here: public, and needed again when the files change within a run

Users who were forgotten (`client.forgetting`) are in none of it, whatever the partner's files still hold; their marks are part of the
fingerprint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.config import RunConfig
from shared.errors import ConfigError, DataError, StateError, StorageError
from shared.flushing import flush
from shared.interest_space import InterestSpace

from .data.catalogue import Catalogue
from .data.histories import Histories, by_user
from .data.links import Links
from .data.pseudonyms import PseudonymTable, load_or_create_key, locate
from .data.sources import ReadReport
from .data.split import COLD, TRAIN, VALIDATION, divide, role
from .durable_files import write_file
from .partner_data import PartnerData, partner_data, rating_range, without_places
from .register import marks_of
from .settings import ClientSettings
from .suppression import Marks

if TYPE_CHECKING:
    from .model.item_tokens import ItemTokens

_FORMAT = "2"
_VERSIONS_KEPT = 2
"""The newest, and the one before: another process may still read it."""

_VERSION = re.compile(r"[0-9a-f]{16}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.(\d+)(?:\.\d+)?")
_LOG = logging.getLogger("isthmus.client")
Progress = Callable[[int, int], None]

__all__ = ["COLD", "TRAIN", "VALIDATION", "Linked", "PreparedDomain", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linked:
    """The users who linked their account here with one at a partner: n rows of `PreparedDomain.everyone` and their link ids."""

    rows: np.ndarray
    link_ids: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedDomain:
    """One domain, ready to be trained on.

    Attributes:
        folder: where all this lies.
        everyone: histories of all users.
        training: histories of training users.
        training_rows: (n_training,) their rows in ``everyone``.
        roles: (n_users,) int8: TRAIN, VALIDATION or COLD.
        links: partner -> linked users.
        text_vectors: (n_items, D) float32, memory-mapped.
        item_ids: n_items ids.
        catalogue_hash: of ids and texts.
        later: of all users, what a benchmark with a cut in time holds back; else None.
    """

    folder: Path
    everyone: Histories
    training: Histories
    training_rows: np.ndarray
    roles: np.ndarray
    links: dict[str, Linked]
    text_vectors: np.ndarray
    item_ids: list[str]
    catalogue_hash: str
    later: Histories | None = None

    def said(self) -> list[str]:
        """What the partner should know about the files; exact counts, for the partner's own eyes."""
        return [str(line) for line in json.loads((self.folder / "said.json").read_text(encoding="utf-8"))]

    def fix_space(self, space: InterestSpace) -> np.ndarray:
        """Projects the catalogue once and keeps coordinates and space on disk. Returns (n_items, d)."""
        kept = self._kept_space(space.version)
        if not kept.is_file():
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **space.to_arrays())
            write_file(kept, buffer.getvalue())
        folder = self.folder / space.version
        if not folder.is_dir():
            _write_folder(folder, lambda new: np.save(new / "coordinates.npy", space.project(self.text_vectors)))
        return self.coordinates(space.version)

    def coordinates(self, space_version: str) -> np.ndarray:
        """(n_items, d) float32, memory-mapped; projected anew where the files have changed since the space was fixed.

        Raises:
            StateError: the space was never sent to this client.
        """
        path = self.folder / space_version / "coordinates.npy"
        if not path.is_file():
            self.fix_space(self.space(space_version))
        return np.asarray(np.load(path, mmap_mode="r"))

    def item_tokens(self, space_version: str) -> ItemTokens | None:
        """What a language model reads of each item, memory-mapped; None where the run's encoder reads no texts."""
        from .model.item_tokens import ItemTokens

        path = self.folder / "tokens.npy"
        return ItemTokens.of(np.load(path, mmap_mode="r"), self.space(space_version)) if path.is_file() else None

    def space(self, space_version: str) -> InterestSpace:
        """The interest space that `fix_space` kept."""
        path = self._kept_space(space_version)
        if not path.is_file():
            path = self.folder / space_version / "space.npz"  # where an earlier version of isthmus kept it
        if not path.is_file():
            what = f"the interest space of the run is not here: there is no file {self._kept_space(space_version)}"
            raise StateError(what, do="Put it back from a copy of the folder, or take part in a run: its first messages bring it.")
        with np.load(path) as arrays:
            return InterestSpace.from_arrays(dict(arrays))

    def _kept_space(self, space_version: str) -> Path:
        return self.folder.parent / "spaces" / f"{space_version}.npz"


def prepare(settings: ClientSettings, config: RunConfig, progress: Progress | None = None) -> PreparedDomain:
    """Reads, checks and encodes a partner's files, or opens what an earlier call left.

    What a new version holds, and what was left out of it, is logged on this machine at level INFO. Versions but the newest two are deleted.

    Args:
        settings: where the files are.
        config: the public bound on items kept for each user.
        progress: called with (texts done, texts in all).
    Raises:
        DataError: a file cannot be used; names file, row and field, never a value.
        StorageError: the arrays could not be written.
    """
    marks = marks_of(settings)
    with partner_data(settings) as data:
        folder = settings.at_home("prepared") / _fingerprint(settings, config, marks, data.version())
        if not folder.is_dir():
            folder = folder.with_name(_fingerprint(settings, config, marks, data.latest()))
        if folder.is_dir():
            data.keep()
            return _open(folder)
        catalogue = data.catalogue()

        def fill(new: Path) -> None:
            _write(new, settings, config, data, catalogue, marks, progress)
            after = _fingerprint(settings, config, marks_of(settings), data.latest())
            if after != folder.name:  # the marks too: a forgotten user never comes back
                raise DataError(f"domain '{settings.domain}': a file changed while it was read", do="Let the export end, then try again.")

        _write_folder(folder, fill)
        data.keep()
    _forget_older_than(folder)
    prepared = _open(folder)
    for line in prepared.said():
        _LOG.info("%s: %s", settings.domain, line)
    return prepared


def knows_space(settings: ClientSettings, space_version: str) -> bool:
    """Whether an interest space that was sent here is still kept. Opens no data."""
    parent = settings.at_home("prepared")
    kept = [parent / "spaces" / f"{space_version}.npz", *parent.glob(f"*/{space_version}/space.npz")]
    return any(path.is_file() for path in kept)


def _fingerprint(settings: ClientSettings, config: RunConfig, marks: Marks, version: list[Any]) -> str:
    """Names what is prepared: a changed file or table, setting or mark makes a new one, a moved file does not."""
    what = [
        _FORMAT,
        version,
        without_places(settings),
        dataclasses.asdict(settings.benchmark),
        settings.text_model,
        config.training.max_items_per_user,
        *([marks.digest] if marks.digest else []),
        *([{"tokens": config.model.lora_tokens}] if config.model.encoder == "text-lora" else []),
        *([settings.text_precision] if settings.text_precision != "float32" else []),
        *([{"ratings": rating_range(settings, config)}] if rating_range(settings, config) else []),
    ]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a new folder and puts it in place in one rename; whoever comes second throws his away."""
    new = folder.with_name(f".{folder.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)  # link ids are in it
        fill(new)
        flush((*new.rglob("*"), new))  # so that after a power cut the rename does not stand there alone
        new.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise StorageError(
                f"cannot write {folder}: {error.strerror}", do="Make room or mend the permissions, then try again: nothing was lost."
            ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Deletes what processes left behind that were ended while they wrote."""
    for path in parent.iterdir():
        unfinished = _UNFINISHED.fullmatch(path.name)
        if unfinished and not _lives(int(unfinished[1])):
            shutil.rmtree(path, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # somebody else's
    return True


def _forget_older_than(folder: Path) -> None:
    """Deletes versions of files that are no more, each out of sight first: nobody may open half of one."""
    others = [path for path in folder.parent.iterdir() if _VERSION.fullmatch(path.name) and path != folder]
    for path in sorted(others, key=_last_used, reverse=True)[_VERSIONS_KEPT - 1 :]:
        doomed = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # another process was faster
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def drop_versions(settings: ClientSettings, config: RunConfig | None) -> int:
    """Deletes every version of the prepared files but the one that is valid now, and what dead processes left. Returns how many went.

    Interest spaces are public and stay. Whoever still reads an old version has it mapped and reads on.

    Args:
        config: of the run in hand; None where there is none, and then no version is valid.
    """
    parent = settings.at_home("prepared")
    if not parent.is_dir():
        return 0
    valid = ""
    if config is not None:
        # A file of the partner's is missing, or the database cannot be asked: no version is valid.
        with contextlib.suppress(DataError, ConfigError), partner_data(settings) as data:
            valid = _fingerprint(settings, config, marks_of(settings), data.version())
    _clear(parent)  # what an earlier call could not finish
    old = [path for path in parent.iterdir() if _VERSION.fullmatch(path.name) and path.name != valid]
    for path in old:
        for space in path.glob("*/space.npz"):  # where an earlier version of isthmus kept it
            write_file(parent / "spaces" / f"{space.parent.name}.npz", space.read_bytes())
        path.rename(path.with_name(f".{path.name}.gone"))  # out of sight first: nobody may open half of one
    _clear(parent)
    _sweep(parent)
    return len(old)


def _clear(parent: Path) -> None:
    for path in parent.glob(".*.gone"):
        shutil.rmtree(path)


def _last_used(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _write(
    folder: Path,
    settings: ClientSettings,
    config: RunConfig,
    data: PartnerData,
    catalogue: Catalogue,
    marks: Marks,
    progress: Progress | None,
) -> None:
    key = load_or_create_key(settings.at_home("keys") / "pseudonyms.key")
    ratings, most = rating_range(settings, config), config.training.max_items_per_user
    result = data.interactions(catalogue, key, max_items_per_user=most, without=marks.users, rating_range=ratings)
    everyone = by_user(result.interactions)
    if ratings is None:  # what no method reads is not kept a second time
        everyone = dataclasses.replace(everyone, ratings=None)
    table = PseudonymTable(pseudonyms=everyone.pseudonyms, external_ids=result.external_ids)
    table.save(settings.at_home("keys") / "external_ids.parquet")
    links = data.links(key)
    data.close()  # texts may take minutes, and a database does not like to wait
    linked = _linked(links, everyone.pseudonyms, marks)
    held_back = settings.benchmark
    divided = divide(everyone, _roles(linked, len(everyone), settings), hold_out_last=held_back.hold_out_last, cut_s=held_back.cut_s)
    divided.save(folder)
    arrays = {"training_rows": divided.training_rows, "roles": divided.roles}
    for partner, people in linked.items():
        arrays |= {f"rows/{partner}": people.rows, f"link_ids/{partner}": people.link_ids}
    np.savez(folder / "people.npz", allow_pickle=False, **arrays)
    _encode(folder, settings, config, catalogue, progress)
    (folder / "catalogue.json").write_text(json.dumps({"item_ids": list(catalogue.item_ids), "hash": catalogue.content_hash}))
    (folder / "said.json").write_text(json.dumps([*said(result.report, catalogue), *divided.said(len(catalogue))]))


def said(report: ReadReport, catalogue: Catalogue) -> list[str]:
    """What the partner should be told about the files; exact counts, for the partner's own eyes."""
    without = catalogue.n_without_text
    return [
        *report.lines(),
        f"{len(catalogue):,} items",
        *([f"{without:,} items without text have no place in the interest space"] if without else []),
    ]


def _encode(folder: Path, settings: ClientSettings, config: RunConfig, catalogue: Catalogue, progress: Progress | None) -> None:
    from .model.onnx_text_encoder import make_text_encoder

    how = {"batch_tokens": config.compute.text_batch_tokens, "threads": config.compute.torch_threads}
    encoder = make_text_encoder(settings.text_model, settings.text_precision, cache=settings.text_cache_path, **how)
    np.save(folder / "text.npy", encoder.encode(catalogue.texts, progress))
    if config.model.encoder == "text-lora":
        from .model.item_tokens import tokens_of

        np.save(folder / "tokens.npy", tokens_of(catalogue.texts, text_model=settings.text_model, most=config.model.lora_tokens))


def _linked(links: Links | None, pseudonyms: np.ndarray, marks: Marks) -> dict[str, Linked]:
    """By partner, links of users who are there. A forgotten link stays out under whatever user id it comes back."""
    found: dict[str, Linked] = {}
    for partner in links.partners if links is not None else ():
        people = links.with_partner(partner)  # type: ignore[union-attr]  # there are no partners without links
        rows = locate(pseudonyms, people.pseudonyms)
        there = (rows >= 0) & ~marks.of_links(people.link_ids)
        found[partner] = Linked(rows=rows[there], link_ids=np.array(people.link_ids, dtype=np.str_)[there])
    return found


def _roles(linked: dict[str, Linked], users: int, settings: ClientSettings) -> np.ndarray:
    """Everybody trains, but for people whom a benchmark holds out; those are held out in every domain they are linked to."""
    roles = np.full(users, TRAIN, dtype=np.int8)
    if settings.benchmark.split_seed >= 0:
        for people in linked.values():
            roles[people.rows] = np.maximum(roles[people.rows], role(people.link_ids.tolist(), settings.benchmark.split_seed))
    return roles


def _open(folder: Path) -> PreparedDomain:
    catalogue = json.loads((folder / "catalogue.json").read_text())
    with np.load(folder / "people.npz") as arrays:
        people = dict(arrays)
    partners = [name.removeprefix("rows/") for name in people if name.startswith("rows/")]
    return PreparedDomain(
        folder=folder,
        everyone=Histories.open(folder / "everyone"),
        training=Histories.open(folder / "training"),
        training_rows=people["training_rows"],
        roles=people["roles"],
        links={name: Linked(rows=people[f"rows/{name}"], link_ids=people[f"link_ids/{name}"]) for name in partners},
        text_vectors=np.asarray(np.load(folder / "text.npy", mmap_mode="r")),
        item_ids=catalogue["item_ids"],
        catalogue_hash=catalogue["hash"],
        later=Histories.open(folder / "later") if (folder / "later").is_dir() else None,
    )
