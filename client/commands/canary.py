"""`isthmus-client canary`: tests the training code of this installation on invented users.

Heavy libraries are imported inside the command: ``--help`` answers at once.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import ConfigError

from .answers import AsJson, Debug, Settings, epilog, libraries_on_stderr, print_document, read_settings

if TYPE_CHECKING:
    from shared.config import RunConfig

    from ..canary.verdict import Verdict
    from ..settings import ClientSettings

REFUTED = 35

EPILOG = epilog(0, 1, 2, 3, 6, 7, 8, 9, 12, 18, 19, 20, 21, 22, 23, 24, REFUTED, 130)


def canary(
    partner_toml: Settings,
    config: Annotated[
        Path | None, typer.Option(help="Run configuration to test; that of the last run when left out.", metavar="RUN_TOML")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the verdict is written; DOMAIN.canary.json here when left out.", metavar="FILE")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Test whether the training code of this installation keeps what the ledger says, on invented users.

    Tier 1 compares the code with the law it claims: noise, batches, clipping, what leaves, what is booked. Tier 2 plants 4,000 canaries
    into one run and measures what they give away. None of your data are opened, and nothing is spent. The verdict is written to a file and
    signed into the ledger, also where it is bad, so that every report says when the code was last tested. Takes less than a minute.

    \b
    Examples:
      isthmus-client canary partner.toml
      isthmus-client canary partner.toml --config run.toml --out verdict.json
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..canary.verdict import code_of, enter, run, to_bytes
        from ..durable_files import write_file

        tested = _config(settings, config)
        _writable(settings)
        with tempfile.TemporaryDirectory(prefix="isthmus-canary-") as workspace:
            verdict = run(tested, code=code_of(settings), workspace=Path(workspace), progress=_progress())
        path, file = out or Path(f"{settings.domain}.canary.json"), to_bytes(verdict, settings.domain)
        write_file(path.absolute(), file)
        events = enter(settings, verdict, file)
    if as_json:
        print_document({**verdict.to_record(settings.domain), "file": str(path), "events": [event.seq for event in events]})
    else:
        print(table(verdict))
        print(f"verdict: {path}, signed into the ledger as events {events[0].seq} and {events[1].seq}")
    return 0 if verdict.passed else REFUTED


def table(verdict: Verdict) -> str:
    """Both tiers for a person."""
    from ..canary.verdict import SHOWS, SHOWS_NOT

    lines = [f"{'':7} {'check':24} {'p':>8} {'value':>9} {'limit':>9}  what"]
    for check in verdict.checks:
        p, value = ("", f"{check.value:.5g}") if check.p is None else (f"{check.p:.2g}", "")
        lines.append(f"{_word(check.passed):7} {check.name:24} {p:>8} {value:>9} {check.limit:>9.5g}  {check.what}")
    found = verdict.one_run
    lines += [
        f"{_word(not found.refuted):7} {'one-run audit':24} {found.p_value:>8.2g} {found.audited_epsilon:>9.3g} "
        f"{found.claimed_epsilon:>9.3g}  audited against claimed epsilon of the audit's own run, {found.canaries:,} canaries "
        f"(bound of Steinke et al.: {found.steinke_epsilon:.3g})",
        "",
        f"tested: configuration '{verdict.config.name}' {verdict.config.config_hash[:16]}, code {verdict.code_digest[:16]}",
    ]
    if verdict.shrunk:
        lines.append(f"made smaller for tier 1: {', '.join(verdict.shrunk)}")
    words = [SHOWS, SHOWS_NOT, found.shows, found.shows_not] if verdict.passed else [_REFUTED, SHOWS_NOT]
    return "\n".join([*lines, "", *words, "", f"{'PASSED' if verdict.passed else 'REFUTED'} in {verdict.seconds:.0f} s"])


_REFUTED = (
    "At least one check says that this code does not do what the ledger is charged for. Stop training with it. Install the release again "
    "with the versions of constraints.txt and test once more; where it is refuted again, tell the authors which check it was."
)


def _word(passed: bool) -> str:
    return "ok" if passed else "REFUTED"


def _config(settings: ClientSettings, path: Path | None) -> RunConfig:
    from shared.config import RunConfig

    from ..queries import CurrentRun

    if path is None:
        return CurrentRun(settings).config_or_none() or RunConfig()
    try:
        return RunConfig.from_toml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        raise ConfigError(f"{path} is no run configuration", do="Name the TOML file of the run, as the coordinator sent it.") from None


def _writable(settings: ClientSettings) -> None:
    """Opens the ledger for a moment, so that a wrong key or a missing ledger is said before the tests and not after."""
    from shared.privacy.ledger import Ledger

    from ..key_rotation import own_keys

    Ledger.open(settings.ledger_path, read_only=True).close()  # before keys would be made where there is no ledger
    Ledger.open(settings.ledger_path, signer=own_keys(settings)).close()


def _progress() -> Callable[[str], None]:
    """A line that says what is being tested, where somebody watches."""
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda words: print(f"\r\x1b[K{words} ...", end="", file=sys.stderr, flush=True)
