"""Before a node is started: is everything there that it needs? A line for each thing, green or with what to do about it.

Nothing is changed, and nothing but two empty requests to the coordinator's server leaves. Counts are exact: for the partner's own eyes.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import IsthmusError, LedgerBroken, NewerLedger, UnknownEvent

from .check_line import Line
from .settings import ClientSettings

GIB = 2**30
LEAST_DISK = GIB
LEAST_MEMORY = GIB
"""A process with the libraries of a round takes half of it, and one more is always waiting."""
ROOMS = ("client", "server", "shared", "simulations")
_DISTRIBUTION = "isthmus"
_CHMOD = "chmod -R go= "
_USUAL_MAX_ITEMS = 500
_NEXT_TO_NOTHING = 0.01
"""What is left of a ceiling when no run fits any more; where a run is under way, what it reserved is left to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All lines. ``domain`` is empty where the settings cannot be read."""

    domain: str
    lines: tuple[Line, ...]

    @property
    def ready(self) -> bool:
        return all(line.ok for line in self.lines)


def preflight(partner_toml: Path, *, data: bool = True, server: bool = True, told: Callable[[Line], None] = lambda _: None) -> Report:
    """Looks at everything; one red line keeps none of the others from being looked at.

    Args:
        data: read the partner's tables, all of them.
        server: connect to the coordinator's server.
        told: is told each line as soon as it is there.
    """
    lines: list[Line] = []

    def add(name: str, look: Callable[[], Iterator[Line]]) -> None:
        for line in _lines(name, look):
            lines.append(line)
            told(line)

    read: list[ClientSettings] = []

    def settings() -> Iterator[Line]:
        read.append(ClientSettings.read(partner_toml))
        yield Line.green("settings", f"{partner_toml.name} of '{read[0].domain}'")

    add("settings", settings)
    add("installation", _installation)
    add("Flower", _flower)
    add("memory", _memory)
    if read:
        looks: dict[str, Callable[[ClientSettings], Iterator[Line]]] = {
            "disk": _disk,
            "permissions": _permissions,
            "keys": _keys,
            "port": _port,
            "ledger": _ledger,
            "bundle": _bundle,
            "text model": _text_model,
            **({"data": _data} if data else {}),
            **({"server": _server} if server else {}),
        }
        for name, look in looks.items():
            add(name, functools.partial(look, read[0]))
    return Report(domain=read[0].domain if read else "", lines=tuple(lines))


def _lines(name: str, look: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """The lines of one look; an error is a red line."""
    try:
        yield from look()
    except IsthmusError as error:
        yield Line.red(name, error.what, error.do or "Mend what the line names, then check again.")
    except Exception as error:  # a look that breaks is a red line like any other; its text could hold anything
        yield Line.red(name, f"could not be looked at ({type(error).__name__})", "This is a fault of isthmus or of the installation.")


# --- the machine -----------------------------------------------------------------------------------------------------------------------


def _installation() -> Iterator[Line]:
    """Plain top-level packages share their names with other people's: whose code would run?"""
    name = "installation"
    if others := name_conflicts():
        what = f"other packages bring modules of our names: {', '.join(others)}"
        yield Line.red(name, what, "Install isthmus into an environment of its own.")
        return
    expected = Path(__file__).resolve().parents[1]
    code = "import client, shared; print(client.__file__); print(shared.__file__)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=120)
    places = {Path(line).resolve().parents[1] for line in done.stdout.splitlines() if line}
    if done.returncode != 0 or places != {expected}:
        yield Line.red(name, "a new process would import other modules than this one", "Install isthmus into an environment of its own.")
    else:
        yield Line.green(name, "no other package has modules named " + ", ".join(ROOMS))


def name_conflicts() -> list[str]:
    """Other distributions that bring a module or package with one of our names."""
    listed = re.compile(rf"^(?:{'|'.join(ROOMS)})(?:/|\.py[,\n])", re.MULTILINE)
    found = set()
    for distribution in importlib.metadata.distributions():
        called = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        tops = (distribution.read_text("top_level.txt") or "").split()
        files = distribution.read_text("RECORD") or ""
        if called != _DISTRIBUTION and (set(tops) & set(ROOMS) or listed.search(files)):
            found.add(called)
    return sorted(found)


def _flower() -> Iterator[Line]:
    from .flower_internals import VERSION, verify

    verify()
    yield Line.green("Flower", f"{VERSION}, as the bundle guard expects it")


def _memory() -> Iterator[Line]:
    free = free_memory()
    if free is None:
        yield Line.green("memory", "this system does not say how much is free")
    elif free < LEAST_MEMORY:
        yield Line.red("memory", f"{free / GIB:.1f} GiB free", f"A node needs {LEAST_MEMORY / GIB:.0f} GiB, and more for large data.")
    else:
        yield Line.green("memory", f"{free / GIB:.1f} GiB free")


def free_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process may still take: what the machine has, and what its control group leaves."""
    found = []
    if (meminfo := _text(proc / "meminfo")) and (match := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)):
        found.append(int(match[1]) * 1024)
    limit, used = _text(groups / "memory.max").strip(), _text(groups / "memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        found.append(max(0, int(limit) - int(used)))
    return min(found, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


# --- the domain ------------------------------------------------------------------------------------------------------------------------


def _disk(settings: ClientSettings) -> Iterator[Line]:
    home = settings.path(settings.home)
    there = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < LEAST_DISK:
        yield Line.red("disk", f"{free / GIB:.1f} GiB free for {home.name}", "Make room: a full disk stops a round after its debit.")
    elif not os.access(there, os.W_OK):
        yield Line.red("disk", f"{there} cannot be written", "Start the node as the user who owns the folder.")
    else:
        yield Line.green("disk", f"{free / GIB:.1f} GiB free for {home.name}")


def _permissions(settings: ClientSettings) -> Iterator[Line]:
    """Others may neither look into the home, nor change what the node believes."""
    home = settings.path(settings.home)
    if not home.is_dir():
        yield Line.red("permissions", f"there is no folder {home}", "Make it: isthmus-client init FOLDER --domain NAME")
        return
    secret = [home, *(path for path in sorted((home / "keys").rglob("*")) if not path.name.endswith((".pub", ".lock")))]
    secret += [path for path in (settings.node_key_path, home / "keys") if path.exists()]
    believed = [settings.base / "partner.toml", settings.ca_path, settings.path(settings.passports.partners), home / "allowed.json"]
    loose = [path for path in secret if _mode(path) & 0o077]
    loose += [path for path in believed if path.exists() and _mode(path) & (stat.S_IWGRP | stat.S_IWOTH)]
    foreign = [path for path in (*secret, *believed) if path.exists() and path.stat().st_uid not in (os.geteuid(), 0)]
    if loose:
        names = " ".join(f"'{path}'" for path in dict.fromkeys(loose))
        yield Line.red("permissions", f"others may read or change {_names(loose)}", _CHMOD + names)
    elif foreign:
        yield Line.red("permissions", f"{_names(foreign)}: of another user", "Start the node as the user who owns the folder.")
    else:
        yield Line.green("permissions", f"{home.name} and its keys are yours alone")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _names(paths: list[Path]) -> str:
    return ", ".join(dict.fromkeys(path.name for path in paths))


def _keys(settings: ClientSettings) -> Iterator[Line]:
    from .key_rotation import NEXT
    from .keys import KEY_FILE, Keys
    from .node_check import check_node_key

    path = settings.at_home("keys") / KEY_FILE
    if path.with_name(NEXT).exists():
        yield Line.red("keys", "a change of the keys was cut off", "Finish it: isthmus-client passport keys PARTNER_TOML")
        return
    if not path.exists():
        yield Line.red("keys", "this domain has no keys yet", "Make them: isthmus-client init FOLDER --domain NAME")
        return
    fingerprint = Keys.load(path).public(settings.domain).fingerprint
    check_node_key(settings)
    yield Line.green("keys", f"fingerprint {fingerprint}")


def _port(settings: ClientSettings) -> Iterator[Line]:
    """Of the node's own processes, where it was chosen and no node of this domain holds it."""
    from shared.process_lock import running

    from .node_check import check_port

    port = settings.server.port
    if port and running(settings.path(settings.home)) is None:
        check_port(port)
        yield Line.green("port", f"{port} is free for the node's own processes")


def _ledger(settings: ClientSettings) -> Iterator[Line]:
    from .keys import KEY_FILE, Keys
    from .ledger_life import overview
    from .ledger_loss import RESTART, why_lost, why_older

    path = settings.at_home("keys") / KEY_FILE
    if not settings.ledger_path.exists():
        lost = why_lost(settings)
        create = "Decide about [ceiling] in partner.toml, then: isthmus-client ledger create PARTNER_TOML"
        yield Line.red("ledger", lost or "there is no ledger yet", RESTART if lost else create)
        return
    try:
        found = overview(settings)
    except (NewerLedger, UnknownEvent):
        raise  # of a newer isthmus: not lost
    except LedgerBroken as error:
        yield Line.red("ledger", error.what, RESTART)
        return
    if found.domain != settings.domain:
        yield Line.red("ledger", f"it belongs to the domain '{found.domain}'", "Name the ledger of this domain in partner.toml.")
    elif older := why_older(settings):
        yield Line.red("ledger", older, RESTART)
    elif not found.keys:
        yield Line.red("ledger", "it is of a format without signatures", "isthmus-client ledger upgrade PARTNER_TOML")
    elif path.exists() and found.keys[-1][1] != Keys.load(path).verify_key:
        yield Line.red(
            "ledger", "it is signed with another key than this domain's", "Put the right keys and the right ledger together again."
        )
    elif found.delta != settings.ceiling.delta:
        what = f"its delta is {found.delta:g}, that of partner.toml {settings.ceiling.delta:g}: every run would be refused"
        yield Line.red("ledger", what, f"Write delta = {found.delta!r} into [ceiling].")
    elif found.remaining < _NEXT_TO_NOTHING * found.ceiling and found.spent >= found.reserved:
        what = f"the budget is used up: epsilon {found.spent:.2f} of {found.ceiling:g}"
        yield Line.red("ledger", what, "isthmus-client ledger raise-ceiling permits more, for ever; or take part no longer.")
    else:
        promise = "" if found.private else ", NOT PRIVATE: a ledger of tests"
        what = f"intact, signed with our key; epsilon {found.spent:.2f} spent, {found.remaining:.2f} of {found.ceiling:g} left{promise}"
        yield Line.green("ledger", what)


def _bundle(settings: ClientSettings) -> Iterator[Line]:
    from .allowed import FILE, AllowList

    allowed = AllowList(settings.at_home(FILE)).allowed()
    if not allowed:
        yield Line.red(
            "bundle", "no bundle may run here yet", "isthmus-client allow PARTNER_TOML FILE --by NAME, with the coordinator's file"
        )
        return
    newest = allowed[-1]
    what = f"{len(allowed)} may run; the newest is {newest.digest[:16]}... ({newest.name or 'not looked at'}), allowed by {newest.by}"
    yield Line.green("bundle", what)


def _text_model(settings: ClientSettings) -> Iterator[Line]:
    from .model.onnx_text_encoder import make_text_encoder

    encoder = make_text_encoder(settings.text_model, settings.text_precision, cache=None)
    precision = "" if settings.text_precision == "float32" else f" in {settings.text_precision}"
    yield Line.green("text model", f"'{settings.text_model}'{precision}, vectors of {encoder.dimension} numbers, in {encoder.folder.name}")


def _data(settings: ClientSettings) -> Iterator[Line]:
    """Reads all tables as a round would; no text is encoded."""
    from .data.pseudonyms import load_or_create_key
    from .partner_data import partner_data
    from .preparation import said
    from .register import marks_of

    path = settings.at_home("keys") / "pseudonyms.key"
    key = load_or_create_key(path) if path.exists() else os.urandom(32)  # counts are the same with any key
    marks = marks_of(settings)
    with partner_data(settings) as data:
        data.require()
        catalogue = data.catalogue()
        read = data.interactions(catalogue, key, max_items_per_user=_USUAL_MAX_ITEMS, without=marks.users)
        links = data.links(key)
    for line in said(read.report, catalogue):
        yield Line.green("data", line)
    for partner, linked in (links.by_partner if links is not None else {}).items():
        yield Line.green("data", f"{len(linked.link_ids):,} users linked with '{partner}'")


def _server(settings: ClientSettings) -> Iterator[Line]:
    from .server_check import check_server

    yield from check_server(settings.server.address, settings.ca_path)
    if settings.server.address and not settings.server.coordinator_key:
        do = "Take the coordinator's card: isthmus-client join FOLDER JOIN.json"
        yield Line.red("coordinator", "partner.toml names no key of the coordinator: every run would be refused", do)
