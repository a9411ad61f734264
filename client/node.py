"""The partner's node: a supervised SuperNode behind the bundle guard, and what can be said about it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError, IsthmusError, LedgerBroken, LedgerError, RolledBack, WrongKey
from shared.privacy.manifest import LEFT, ManifestLine, read_line
from shared.process_lock import running
from shared.supervision import STARTED, Backoff, Program, Supervisor, last_line, tell_on_stderr

from .allowed import FILE, AllowList
from .bundle_guard import OURS, REFUSED_FILE, command
from .settings import ClientSettings

NODE = "supernode"
_FIRST_PAUSE_S = 1.0
_STOP_S = 30.0
"""Flower tells the server that the node leaves, and the executor ends its processes: seconds, and more on a machine that is busy."""
_JOIN = "Take the coordinator's card: isthmus-client join FOLDER JOIN.json"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_EXIT_CODE = re.compile(r"Exit Code: (\d+)\s*\n(.*)(?:\n(.*))?")
_OWN_ERROR = re.compile(r"^\w+Error: .*(?:\n  .*)?", re.MULTILINE)
_NO_CONNECTION = "Failed to initialize the connection"
_IN_ORDER = "SuperNode terminated gracefully"
_DECLINED = (
    "ended in order: the server refused what this node signed (is this machine's clock right, and does the coordinator know its key?), or "
    "somebody ended it; isthmus-client check says more"
)
_TLS_HINT = "isthmus-client check says what is wrong with the server's certificate"
_OFFLINE_HINT = (
    "either the coordinator does not know this node's key, or it still takes the node for online after a crash; this ends by itself"
)
_REACHED = ("SuperNode ID: ", "Connection successful")
_AWAY = "Connection attempt failed"
_TAIL = 256 * 1024


def check_ready(settings: ClientSettings) -> None:
    """What has to be there before anything is tried for ever.

    Raises:
        ConfigError: the domain has not joined, or a file is missing or damaged.
        DataError: the node's key cannot be used, or is another's.
        PassportError: others may read the keys.
        LedgerError: the ledger is gone, cannot be used, or is another domain's.
        RolledBack: it is an older copy.
        WrongKey: it is signed with another key than this domain's.
    """
    from .flower_internals import verify
    from .key_rotation import NEXT
    from .keys import KEY_FILE, Keys
    from .ledger_life import overview
    from .ledger_loss import RESTART, why_lost, why_older
    from .node_check import check_authority, check_node_key

    if not settings.server.address or not settings.server.coordinator_key:
        raise ConfigError("partner.toml names no server, or no key of its coordinator", do=_JOIN)
    if not settings.ca_path.is_file():
        raise ConfigError(f"there is no certificate {settings.ca_path.name} of the coordinator's authority", do=_JOIN)
    check_authority(settings.ca_path)
    keys = Keys.load(settings.at_home("keys") / KEY_FILE)
    check_node_key(settings)
    if settings.node_key_path.stat().st_mode & 0o077:
        raise ConfigError("the node's key can be read by others than its owner", do=f"chmod 600 '{settings.node_key_path}'")
    if not settings.ledger_path.exists():
        if lost := why_lost(settings):
            raise LedgerBroken(lost, do=RESTART)
        raise ConfigError(
            "there is no ledger yet", do="Decide about [ceiling] in partner.toml, then: isthmus-client ledger create PARTNER_TOML"
        )
    if older := why_older(settings):
        raise RolledBack(older, do=RESTART)
    found = overview(settings)
    if found.domain != settings.domain:
        raise LedgerError(f"the ledger belongs to the domain '{found.domain}'", do="Name the ledger of this domain in partner.toml.")
    cut_off = (settings.at_home("keys") / NEXT).exists()  # a change of keys, which the next use of them finishes
    if found.keys and found.keys[-1][1] != keys.verify_key and not cut_off:
        do = "Put the right keys and the right ledger together again."
        raise WrongKey("the ledger is signed with another key than this domain's", do=do)
    AllowList(settings.at_home(FILE)).decisions()
    verify()


def keep_up(partner_toml: Path, *, tell: Callable[[str], None] = tell_on_stderr) -> None:
    """Keeps the node running until it is told to stop; see `shared.supervision`.

    Raises:
        ConfigError: something is missing that no retry would bring.
        UsageError: it is running already.
    """
    partner_toml = partner_toml.resolve()
    settings = ClientSettings.read(partner_toml)
    check_ready(settings)
    supervisor = Supervisor(
        [program(settings, partner_toml)],
        what=f"the node of '{settings.domain}'",
        folder=folder_of(settings),
        logs=settings.at_home("logs"),
        backoff=Backoff(first_s=_FIRST_PAUSE_S, longest_s=settings.server.longest_retry_s),
        tell=tell,
    )
    supervisor.run()


def program(settings: ClientSettings, partner_toml: Path) -> Program:
    """The SuperNode behind the guard, as the supervisor starts it."""
    server = settings.server
    return Program(
        name=NODE,
        command=command(
            partner_toml,
            superlink=server.address,
            root_certificates=settings.ca_path,
            node_key=settings.node_key_path,
            port=server.port,
            deadline_s=server.deadline_s,
        ),
        environment={"NO_COLOR": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        why=why_it_ended,
        stop_s=_STOP_S,
    )


def folder_of(settings: ClientSettings) -> Path:
    """Where lock and record of a running node lie."""
    return settings.path(settings.home)


def why_it_ended(log: str) -> str:
    """Why a SuperNode ended: Flower's exit code with what it said, our own error, a refusal by the server, or its last words.

    >>> why_it_ended("ERROR : Exit Code: 302\\nNode authentication requires a key\\nsomething else")
    'Flower ended with code 302: Node authentication requires a key'
    """
    plain = _COLOURS.sub("", log)
    codes, errors = list(_EXIT_CODE.finditer(plain)), _OWN_ERROR.findall(plain)
    if codes:
        code, said = codes[-1][1], codes[-1][2].strip()[:200]
        if said.startswith(_NO_CONNECTION):  # the next line says why
            said += f" {(codes[-1][3] or '').strip()[:200]}"
        if code != "305" or said.startswith(OURS):
            return f"Flower ended with code {code}: {said}"
        return f"Flower ended with code {code}: {said} ({_TLS_HINT if 'CERTIFICATE_VERIFY_FAILED' in said else _OFFLINE_HINT})"
    if errors:
        return " ".join(str(errors[-1]).split())[:400]
    return _DECLINED if _IN_ORDER in plain else last_line(plain)


# --- what can be said from outside -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A node as it is now.

    Attributes:
        since: when the supervisor was started; None where none runs.
        node: the record of the SuperNode; None where none runs.
        connected: whether the server answered it last, as its log says.
        messages: the last ones that left or were stopped, oldest first.
        run_id: of the run that greeted this client last; None before the first.
        round: the last round that was answered in it; None before the first.
        answered: how many of its rounds were answered; ``rounds``: of its schedule.
        spent, reserved, ceiling: epsilon; None where there is no ledger that can be read, and then ``trouble`` says why.
        refusal: the last bundle that was refused.
    """

    domain: str
    since: str | None
    pid: int | None
    node: dict[str, Any] | None
    connected: bool
    messages: tuple[ManifestLine, ...]
    run_id: str | None
    round: int | None
    answered: int | None
    rounds: int | None
    spent: float | None
    reserved: float | None
    ceiling: float | None
    delta: float | None
    trouble: str
    refusal: dict[str, Any] | None


def status(settings: ClientSettings, *, last: int = 5) -> Status:
    """Reads beside whatever runs, and changes nothing."""
    record = running(folder_of(settings))
    node = record["programs"].get(NODE) if record else None
    lines = [line for line in (read_line(raw) for raw in tail(settings.at_home("egress.jsonl"))) if line is not None]
    spent = reserved = ceiling = delta = None
    trouble = ""
    run_id, rounds = _run(settings)
    answered: int | None = None
    try:
        from .ledger_life import overview

        found = overview(settings)
        spent, reserved, ceiling, delta = found.spent, found.reserved, found.ceiling, found.claimed_delta
        answered = next((run.committed for run in found.runs if run.run_id == run_id), None)
    except IsthmusError as error:
        trouble = error.what
    refused = [one for one in (_object(raw) for raw in tail(settings.at_home(REFUSED_FILE))) if one]
    in_round = [line.round for line in lines if line.event == LEFT and line.round]
    return Status(
        domain=settings.domain,
        since=record["started_utc"] if record else None,
        pid=record["pid"] if record else None,
        node=node,
        connected=bool(node and node.get("pid")) and connected(settings),
        messages=tuple(lines[-last:]),
        run_id=run_id,
        round=in_round[-1] if in_round and answered else None,
        answered=answered,
        rounds=rounds,
        spent=spent,
        reserved=reserved,
        ceiling=ceiling,
        delta=delta,
        trouble=trouble,
        refusal=refused[-1] if refused else None,
    )


def connected(settings: ClientSettings) -> bool:
    """Whether a SuperNode that runs is in touch with the server, by the last thing that its log says about it."""
    answered = False
    for line in tail(settings.at_home(f"logs/{NODE}.log")):
        said = line.decode("utf-8", "replace")
        if said.startswith(STARTED) or _AWAY in said:
            answered = False
        elif any(words in said for words in _REACHED):
            answered = True
    return answered


def _run(settings: ClientSettings) -> tuple[str | None, int | None]:
    """Id of the run that greeted last, and its rounds, where they can be read."""
    from .queries import CurrentRun

    with contextlib.suppress(IsthmusError, OSError, UnicodeDecodeError):
        current = CurrentRun(settings)
        return current.run_id(), current.config().privacy.rounds
    return None, None


def tail(path: Path) -> Iterator[bytes]:
    """The whole lines at the end of a file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            data = file.read()
    except OSError:
        return
    lines = data.split(b"\n")[:-1]  # what follows the last end of a line is not whole
    yield from lines[1:] if size > _TAIL else lines


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
