"""What partners delivered, opened: erasure notices first, then passports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import PassportError

from .durable_files import storage_errors
from .erasure_notice import NOTICE_SUFFIX
from .forgetting import take_notice
from .passport_exchange import file_name, take_in
from .queries import CurrentRun
from .settings import ClientSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What was found in the inbox.

    Attributes:
        new: passports that are new or renewed; for this partner's own eyes.
        files: files of passports that were opened, by name.
        notices: erasure notices that were carried out, by name; they are deleted.
        left_out: name and reason of each file that cannot be used; it stays.
    """

    new: int
    files: tuple[str, ...]
    notices: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def open_inbox(settings: ClientSettings) -> Opened:
    """Opens every file in the inbox that is addressed to this domain. Called again, it changes nothing.

    Raises:
        StateError: there are passports, and no run whose interest space they could belong to.
        StorageError: something cannot be deleted or written; call again.
    """
    inbox = settings.path(settings.passports.inbox)
    left_out: list[tuple[str, str]] = []
    notices = _each(sorted(inbox.glob(f"*-to-{settings.domain}-*{NOTICE_SUFFIX}")), lambda path: _carry_out(settings, path), left_out)
    new, files = 0, []
    found = sorted(inbox.glob(file_name("*", settings.domain)))
    if found:
        run = CurrentRun(settings)
        version, dimension = run.space_version(), run.config().model.dimension
        for path in found:
            try:
                new += take_in(settings, version, path, dimension=dimension)
                files.append(path.name)
            except PassportError as error:
                left_out.append((path.name, error.what))
    return Opened(new=new, files=tuple(files), notices=tuple(notices), left_out=tuple(left_out))


def _each(paths: list[Path], do: Callable[[Path], None], left_out: list[tuple[str, str]]) -> list[str]:
    done = []
    for path in paths:
        try:
            do(path)
            done.append(path.name)
        except PassportError as error:
            left_out.append((path.name, error.what))
    return done


def _carry_out(settings: ClientSettings, path: Path) -> None:
    take_notice(settings, path)
    with storage_errors(f"'{path.name}'"):
        path.unlink(missing_ok=True)
