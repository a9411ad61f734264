"""`isthmus-server status` and `stop`: what runs, who is there, and ending it.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import FederationError

from .answers import AsJson, Debug, HomeFolder, answer, epilog, open_home

if TYPE_CHECKING:
    from ..home import Home

EPILOG = epilog(0, 1, 2, 3, 5, 6, 16, 130)
_SHOWN = 10
_END_S = 60.0


def status(home: HomeFolder, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what runs, which partners are connected, what each has spent, and the latest runs.

    \b
    Examples:
      isthmus-server status coordinator
      isthmus-server status coordinator --json
    """
    del debug
    opened = open_home(home)
    document = _document(opened)
    answer(as_json, document, _words(document))


def stop(
    home: HomeFolder,
    run: Annotated[str, typer.Argument(help="Stop this run only; `last` is the newest. Left out: everything.", metavar="[RUN]")] = "",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Stop a run, or the run that is going on and all that `isthmus-server up` keeps running.

    Rounds that were committed stay, and `isthmus-server resume` goes on from the last of them.

    \b
    Examples:
      isthmus-server stop coordinator last
      isthmus-server stop coordinator
    """
    del debug
    from shared.process_lock import running

    from .. import launch
    from ..runs import find, going_on
    from ..submission import Control

    opened = open_home(home)
    up = running(opened.root)
    folders = [find(opened, run)] if run else [one.folder for one in going_on(opened)]
    stopped, unheard = [], []
    with Control(opened.settings.superlink_address, opened.ca) as control:
        for folder in folders:
            try:
                if launch.stop(control if up else None, folder):
                    stopped.append(folder.name)
            except FederationError as error:
                if run:
                    raise
                unheard.append(f"{folder.name} was ended without being asked ({error.what})")  # with everything: by what runs it
    ended = False if run or up is None else _end(opened, int(up["pid"]))
    words = [f"stopped {name}; isthmus-server resume {opened.root} {name} goes on with it" for name in stopped]
    words += unheard
    words += [f"{folders[0].name} was not going on"] if run and not stopped else []
    words += [] if run else ["everything is stopped" if ended else "nothing was up"]
    answer(as_json, {"stopped": stopped, "ended": ended}, "\n".join(words))


def _end(home: Home, pid: int) -> bool:
    """Ends the supervisor and waits until it is gone and has let go of the home."""
    from shared.process_groups import began
    from shared.process_lock import running

    if pid > 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + _END_S
    while running(home.root) is not None or (pid > 1 and began(pid) is not None):
        if time.monotonic() > until:
            raise FederationError(f"it has not ended in {_END_S:.0f} s", do=f"Look at {home.logs}; a second SIGTERM ends it at once.")
        time.sleep(0.2)
    return True


def _document(home: Home) -> dict[str, Any]:
    from shared.errors import IsthmusError
    from shared.process_lock import running

    from ..enrolment import listed
    from ..receipts import ReceiptsFile
    from ..runs import all_runs
    from ..runs import status as run_status
    from ..submission import Control

    up = running(home.root)
    nodes, trouble = {}, ""
    if up is not None:
        try:
            with Control(home.settings.superlink_address, home.ca) as control:
                nodes = {node.name: node.status for node in control.nodes()}
        except IsthmusError as error:
            trouble = error.what
    receipts = ReceiptsFile(home.receipts).load()
    partners = [
        {
            "domain": one.domain,
            "node": nodes.get(one.domain, "unknown"),
            "epsilon": receipts[one.domain].epsilon_spent if one.domain in receipts else 0.0,
            "ceiling": one.agreement.ceiling_epsilon if one.agreement.ceiling_epsilon < float("inf") else None,
        }
        for one in listed(home)
    ]
    return {
        "home": str(home.root),
        "server": home.settings.address,
        "up": up is not None,
        "trouble": trouble,
        "programs": {} if up is None else up["programs"],
        "partners": partners,
        "runs": [run_status(folder).to_json() for folder in all_runs(home)[-_SHOWN:]],
        "warnings": list(home.warnings()),
    }


def _words(document: dict[str, Any]) -> str:
    lines = [f"{document['server']}: {'up' if document['up'] else 'not up; isthmus-server up starts it'}"]
    if document["trouble"]:
        lines.append(f"  {document['trouble']}")
    for name, one in document["programs"].items():
        if one["pid"]:
            lines.append(
                f"  {name:<12} running since {one['since_utc']}" + (f", started {one['starts']} times" if one["starts"] > 1 else "")
            )
        else:
            why = f"; {one['last_why']}" if one["last_why"] else ""
            lines.append(
                f"  {name:<12} not running" + (f", starts again at {one['next_start_utc']}" if one["next_start_utc"] else "") + why
            )
    lines.append("partners:" if document["partners"] else "partners: nobody is enrolled")
    for one in document["partners"]:
        ceiling = "no ceiling" if one["ceiling"] is None else f"of {one['ceiling']:.2f}"
        lines.append(f"  {one['domain']:<16} {_NODE.get(one['node'], one['node']):<22} epsilon {one['epsilon']:.2f} {ceiling}")
    lines.append("runs:" if document["runs"] else "runs: none yet")
    for one in document["runs"]:
        lines.append(f"  {one['run']:<36} {one['state']:<9} {one['round']} of {one['rounds']} rounds   {one['stage']}".rstrip())
        lines += [f"    {one['error']['what']}"] if one["error"] else []
        lines += [f"    refused replies of {domain}: {_counted(codes)}" for domain, codes in sorted(one["refused"].items())]
        lines += [f"    left out: {domain} ({code})" for domain, code in sorted(one["left_out"].items())]
    return "\n".join(lines)


def _counted(codes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))


_NODE = {"online": "connected", "offline": "not connected", "registered": "never connected", "unknown": "not known"}
