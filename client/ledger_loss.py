"""What a domain's own files say about a ledger that is gone or older than it was; the coordinator's receipt knows more, but is not here.

Three things outlive a ledger: the mark of what was confirmed and the remains that a restart moved aside, beside it, and the lines of the
egress manifest, which name the commit that each update belongs to. A reader does not compare the mark, and a backup may have put it back as
well; so all three are looked at before a node is started, and before anybody makes a second first ledger.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shared.errors import AuditError
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_file import confirmed
from shared.privacy.manifest import LEFT, ManifestLine, read_manifest

from .settings import ClientSettings

RESTART = (
    "Put the newest ledger back. If it is lost: isthmus-client ledger restart, with the coordinator's receipt; what the lost one "
    "permitted counts as spent."
)


def why_lost(settings: ClientSettings) -> str:
    """How it is known that a ledger was at its place, where none is; empty where nothing speaks of one."""
    path = Path(os.path.realpath(settings.ledger_path))
    if lost := remains_of(path):
        return f"the ledger of this place was lost before: {lost[-1].name}"
    if _has_mark(path):
        return f"the ledger is gone: {path.name}.lock beside it still says what it held"
    if line := _last_update(settings):
        return f"the ledger is gone: {_left(line)}"
    return ""


def why_older(settings: ClientSettings) -> str:
    """How it is known that the ledger is an older copy; empty where nothing speaks for it. Reads beside any writer.

    Raises:
        LedgerError: it cannot be used.
    """
    mark = confirmed(settings.ledger_path)  # first, and the manifest too: what is written meanwhile makes the ledger newer only
    line = _last_update(settings)
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        head = next(iter(ledger.newest_first())).seq
        if head < mark:
            return f"it ends at event {head}, but event {mark} was written here: it was rolled back"
        if line is None:
            return ""
        for event in ledger.newest_first():
            lost_before = event.kind == "genesis" and event.payload["booked_epsilon"] is not None
            if event.hash == line.ledger_event or (lost_before and line.time_utc[:19] <= event.time_utc[:19]):
                return ""  # it is there, or left under the lost ledger that this one books as spent
    return f"it is an older copy: {_left(line)}"


def remains_of(path: Path) -> list[Path]:
    """Ledgers of this place that were lost and moved aside, oldest first."""
    found = {}
    for one in path.parent.glob(f"{path.name}.lost-*"):
        number = one.name.removeprefix(f"{path.name}.lost-")
        if number.isdecimal():
            found[int(number)] = one
    return [found[number] for number in sorted(found)]


def _has_mark(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(path.with_name(path.name + ".lock").read_bytes().strip(b"\0"))
    return False


def _last_update(settings: ClientSettings) -> ManifestLine | None:
    """The last message that left and names an event of the ledger."""
    path = settings.at_home("egress.jsonl")
    if not path.exists():
        return None
    with contextlib.suppress(AuditError):  # whoever audits says what is wrong with it
        return next((line for line in reversed(read_manifest(path).lines) if line.event == LEFT and line.ledger_event), None)
    return None


def _left(line: ManifestLine) -> str:
    what = "a release" if line.round is None else f"an update of round {line.round}"
    return f"by the egress manifest {what} left at {line.time_utc}, and no ledger here holds its event"
