"""`isthmus-client up` and `status`: the node is kept running, and says how it is.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .answers import AsJson, Debug, Settings, answer, epilog, libraries_on_stderr, read_settings

if TYPE_CHECKING:
    from ..node import Status

UP_EPILOG = epilog(0, 1, 2, 3, 4, 6, 7, 9, 12, 18, 19, 20, 21, 22, 24, 130)
STATUS_EPILOG = epilog(0, 1, 2, 3, 130)


def up(partner_toml: Settings, debug: Debug = False) -> None:
    """Keep this partner's node running: behind the bundle guard, connected to the coordinator's server, started again whenever it ends.

    It runs in the foreground until SIGTERM or Ctrl-C, and then leaves no process behind; what it says goes to home/logs. What no retry
    would bring (settings, keys, certificate, ledger) is refused at once. Everything else is tried again for ever, with pauses that grow
    from one second to a minute: a server that is away, or one that still takes the node for online after a crash.

    \b
    Example:
      isthmus-client up partner.toml
    """
    del debug
    read_settings(partner_toml)
    with libraries_on_stderr():
        from ..node import keep_up

        keep_up(partner_toml)


def status(
    partner_toml: Settings,
    last: Annotated[int, typer.Option(min=0, max=1000, help="How many of the last messages to show.", metavar="N")] = 5,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say whether the node runs and since when, what left last, how far the run is, what is spent, and what was refused.

    Reads beside a node that is at work, and changes nothing.

    \b
    Examples:
      isthmus-client status partner.toml
      isthmus-client status partner.toml --json
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..node import status as look

        found = look(settings, last=last)
    answer(as_json, _record(found), _words(found))


def _record(found: Status) -> dict[str, Any]:
    return {
        "domain": found.domain,
        "running": found.since is not None,
        "since_utc": found.since,
        "pid": found.pid,
        "connected": found.connected,
        "node": found.node,
        "run_id": found.run_id,
        "round": found.round,
        "rounds_answered": found.answered,
        "rounds": found.rounds,
        "epsilon_spent": found.spent,
        "epsilon_reserved": found.reserved,
        "ceiling_epsilon": found.ceiling,
        "delta": found.delta,
        "trouble": found.trouble,
        "last_messages": [asdict(line) for line in found.messages],
        "last_refusal": found.refusal,
    }


def _words(found: Status) -> str:
    said = [_running(found)]
    if found.run_id is not None:
        said.append(
            f"run: {found.run_id}, {found.answered or 0} of {found.rounds} rounds answered"
            + (f", last {found.round}" if found.round else "")
        )
    if found.spent is None:
        said.append(f"ledger: {found.trouble}")
    else:
        promised = f"epsilon {found.spent:.3f} of {found.ceiling:g} (delta {found.delta:g}, each user, for life)"
        said.append(f"spent: {promised}; reserved: {found.reserved:.3f}")
    for line in found.messages:
        size = "" if line.bytes is None else f", {line.bytes:,} bytes"
        number = "" if line.round is None else f", round {line.round}"
        said.append(f"{line.time_utc}  {line.event}: {line.kind}{number}{size} ({line.why})")
    if found.refusal is not None:
        said.append(f"last bundle refused: {found.refusal.get('digest')} at {found.refusal.get('time')}: {found.refusal.get('why')}")
    return "\n".join(said)


def _running(found: Status) -> str:
    if found.since is None:
        return f"node of '{found.domain}': not running; start it with isthmus-client up PARTNER_TOML"
    node = found.node or {}
    said = f"node of '{found.domain}': up since {found.since or 'a moment ago'} (process {found.pid})"
    if node.get("pid"):
        said += f"; SuperNode {'connected' if found.connected else 'NOT CONNECTED'}, running since {node.get('since_utc')}"
        said += f", started {node.get('starts')} times"
        if not found.connected:
            why = f"; it ended before: {node['last_why']}" if node.get("last_why") else ""
            said += f"{why}; isthmus-client check PARTNER_TOML looks for the reason"
    elif node.get("last_why"):
        said += f"; SuperNode waits until {node.get('next_start_utc')}: {node.get('last_why')}"
    return said
