"""`isthmus-server bundle`, `run` and `resume`: what runs, and watching it.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import UsageError

from .answers import AsJson, Debug, HomeFolder, answer, epilog, open_home

if TYPE_CHECKING:
    from ..home import Home
    from ..launch import Plan
    from ..price import Price
    from ..runs import RunStatus
    from ..submission import Control

EPILOG = epilog(0, 1, 2, 3, 4, 5, 6, 11, 16, 23, 130)
BUNDLE_EPILOG = epilog(0, 1, 2, 3, 4, 6, 130)
RunName = Annotated[str, typer.Argument(help="Name of the run, or the beginning of it; `last` is the newest.", metavar="RUN")]
_Again = Annotated[int, typer.Option(help="How often to go on by itself after the ServerApp was killed.", metavar="N", min=0)]
_Detach = Annotated[bool, typer.Option("--detach", help="Come back once it is submitted.")]


def bundle(
    home: HomeFolder,
    project: Annotated[Path | None, typer.Option(help="Checkout to build it of; by default the one that runs here.", metavar="DIR")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Build the bundle of code that runs ship, and keep the file in HOME/bundles: partners allow it by its digest.

    The same checkout gives the same bytes. Send partners the file, or have them build it themselves and compare the digest.

    \b
    Example:
      isthmus-server bundle coordinator
    """
    del debug
    from shared import bundle as bundles

    opened = open_home(home)
    made = bundles.build(project or bundles.project_folder())
    path = bundles.save(made, opened.bundles)
    words = f"{path}\n{made.size:,} bytes; a partner allows it with isthmus-client allow PARTNER_TOML {made.digest}"
    answer(as_json, {"file": str(path), "digest": made.digest, "bytes": made.size}, words)


def run(
    home: HomeFolder,
    run_toml: Annotated[Path | None, typer.Argument(help="Run configuration; by default the one server.toml names.")] = None,
    bundle: Annotated[
        str, typer.Option(help="File or digest of the code that runs; needed where HOME holds several.", metavar="FILE")
    ] = "",
    wait_for: Annotated[str, typer.Option(help="Domains that have to be connected first, with commas; or `all`.", metavar="DOMAINS")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the price and who would take part, and end.")] = False,
    detach: _Detach = False,
    again: _Again = 3,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check a run, show its price, submit it, and tell what it does until it ends.

    The noise is solved, the price compared with what each partner agreed to, the configuration signed with the coordinator's key, and the
    very bundle file submitted that partners allowed. Ctrl-C stops the watching, not the run.

    \b
    Examples:
      isthmus-server run coordinator run.toml --dry-run
      isthmus-server run coordinator run.toml --wait-for books,films,music
    """
    del debug
    from .. import launch
    from ..submission import Control

    opened = open_home(home)
    plan = launch.plan(opened, run_toml or opened.run_file, bundle)
    _tell(_plan_words(plan))
    if dry_run:
        answer(as_json, _plan_document(plan), "nothing was submitted")
        return
    domains = [one.domain for one in plan.price.domains] if wait_for == "all" else _listed(wait_for)
    with Control(opened.settings.superlink_address, opened.ca) as control:
        there = launch.wait_for(control, plan, domains, _tell)
        _tell(f"connected: {', '.join(there)}")
        folder = launch.submit(opened, control, plan, there)
        _tell(f"submitted as {folder.name}")
        _answer(opened, folder, as_json, None if detach else _watched(opened, control, folder, again, as_json))


def resume(
    home: HomeFolder, run: RunName, detach: _Detach = False, again: _Again = 3, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Go on with a run that was stopped, failed or was killed, from its last checkpoint.

    A round that was committed is never computed again. What clients trained for a round that was lost is paid from the run's reserve.

    \b
    Examples:
      isthmus-server resume coordinator last
      isthmus-server resume coordinator first-20300102-030405
    """
    del debug
    from .. import launch
    from ..journal import Journal
    from ..runs import find, status
    from ..submission import Control

    opened = open_home(home)
    folder = find(opened, run)
    with Control(opened.settings.superlink_address, opened.ca) as control:
        seen = len(Journal(folder).read())
        launch.resume(opened, control, folder)
        _tell(f"{folder.name} goes on after round {status(folder).round}")
        _answer(opened, folder, as_json, None if detach else _watched(opened, control, folder, again, as_json, seen))


def _watched(home: Home, control: Control, folder: Path, again: int, as_json: bool, seen: int = 0) -> RunStatus | None:
    """Follows a run, and submits it again where its ServerApp was lost. None where somebody stopped watching."""
    from .. import launch
    from ..journal import Journal
    from ..watch import Lost, follow

    try:
        while True:
            try:
                return follow(folder, control, _tell, seen=seen)
            except Lost as lost:
                if again == 0:
                    raise
                again -= 1
                seen = len(Journal(folder).read())
                _tell(f"{lost.what}; submitted again")
                _patiently(lambda: launch.resume(home, control, folder))
    except KeyboardInterrupt:
        _tell(f"\n{folder.name} goes on without being watched: isthmus-server status {home.root} shows it, stop {home.root} ends it")
        raise


def _patiently(act: Any, patience_s: float = 60.0) -> None:
    """The SuperLink may be starting again, after what killed the ServerApp killed it too."""
    import time

    from shared.errors import FederationError

    until = time.monotonic() + patience_s
    while True:
        try:
            act()
            return
        except FederationError:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


def _answer(home: Home, folder: Path, as_json: bool, ended: RunStatus | None) -> None:
    from ..runs import status

    now = ended or status(folder)
    words = f"{now.name}: {now.state}, {now.round} of {now.rounds} rounds"
    if ended is not None:
        words += f"\nisthmus-server report {home.root} {now.name} writes its report"
    answer(as_json, now.to_json(), words)


def _listed(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if text and not names:
        raise UsageError("--wait-for names nobody", do="Write books,films.")
    return names


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plan_document(plan: Plan) -> dict[str, Any]:
    privacy = plan.config.privacy
    return {
        "config_hash": plan.config.config_hash,
        "noise_multiplier": privacy.noise_multiplier,
        "private": privacy.private,
        "bundle": plan.bundle.digest,
        "price": plan.price.to_json(),
    }


def _plan_words(plan: Plan) -> str:
    privacy = plan.config.privacy
    rounds = f"{privacy.rounds} rounds and {privacy.reserve_rounds} in reserve"
    lines = [
        f"{plan.config.name}: {rounds}, noise multiplier {privacy.noise_multiplier:.4f}",
        f"bundle {plan.bundle.digest[:16]}",
    ]
    if not privacy.private:
        lines.append("NOT PRIVATE: a test build")
    return "\n".join([*lines, *price_lines(plan.price)])


def price_lines(price: Price) -> list[str]:
    """A price for people: by domain, then for a person in k of them."""
    lines = [f"{'domain':<16} {'spent':>7} {'after':>8} {'ceiling':>8}   (epsilon at delta {price.delta:g}, unit: user)"]
    for one in price.domains:
        after = f"{'>= ' if one.at_least else ''}{one.after:.2f}"
        lines.append(f"{one.domain:<16} {one.spent:>7.2f} {after:>8} {one.ceiling:>8.2f}")
        lines += [f"  will refuse: {line}" for line in one.against]
    if any(one.at_least for one in price.domains):
        lines.append(">=: at least; its ledger holds earlier runs, adds them up by its own rule, and refuses what would pass the ceiling")
    table = ", ".join(f"k={k} {value:.2f}" for k, value in enumerate(price.for_k_domains, 1))
    return [*lines, f"this run for a person in k domains, reserve included: {table}", f"without the reserve: {price.alone:.2f}"]
