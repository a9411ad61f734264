"""isthmus-audit: checks a ledger with nothing but the file and a public key. Needs neither client nor server.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import command_of, error_record, guarded
from ..errors import AuditError, UsageError

EXIT_WORDS = {
    0: "intact and within budget",
    1: "unexpected error (a log is named)",
    2: "wrong usage",
    3: "the text about a deployment cannot be used",
    6: "storage",
    7: "no ledger there",
    8: "a process is writing to the ledger",
    9: "broken ledger (recompute; verify says 30)",
    18: "not a ledger",
    19: "empty ledger",
    20: "ledger of a newer format",
    21: "event of an unknown kind",
    23: "key, receipts or manifest cannot be used",
    24: "wrong key",
    25: "receipts of another partner",
    26: "ledgers with different deltas",
    30: "BROKEN",
    31: "ROLLED BACK",
    32: "EXCEEDED",
    33: "RAISED: intact, but the ceiling was raised or a lost ledger is booked",
    34: "NOT VERIFIABLE, or NOT VERIFIED",
    130: "interrupted",
}
EPILOG = "Exit codes: " + ", ".join(f"{code} {words}" for code, words in EXIT_WORDS.items()) + "."
NOT_VERIFIED = 34

app = typer.Typer(
    help="Check a privacy ledger without trusting who wrote it: the file and the partner's public key are enough.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def _isthmus_audit() -> None:
    """Check a privacy ledger without trusting who wrote it: the file and the partner's public key are enough."""


Ledger = Annotated[Path, typer.Argument(help="A ledger, or the file that its owner handed over.", metavar="LEDGER")]
Ledgers = Annotated[list[Path], typer.Argument(help="Ledgers of different domains.", metavar="LEDGER...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output; all else goes to standard error.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")]
ReceiptsFile = Annotated[
    Path | None, typer.Option(help="The coordinator's last receipts; without them the end of a ledger is not provable.", metavar="FILE")
]
TimeLimit = Annotated[
    float, typer.Option(help="Seconds that PRV may take for a ledger, before another accountant takes its place.", min=0.0)
]


@app.command(epilog=EPILOG)
def verify(
    ledger: Ledger,
    key: Annotated[str, typer.Option(help="The partner's public key: its public-key file, or 64 hex digits.", metavar="PUB")],
    receipts: ReceiptsFile = None,
    manifest: Annotated[Path | None, typer.Option(help="The partner's egress manifest, compared with the commits.", metavar="FILE")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Check chain, signatures, sequence, ceilings, recorded numbers, receipts and manifest; name the first bad event.

    The ledger and its folder stay as they are, byte for byte. Have the partner confirm its key's fingerprint by telephone.

    \b
    Examples:
      isthmus-audit verify books-ledger.sqlite --key books.keys.json
      isthmus-audit verify books-ledger.sqlite --key books.keys.json --receipts receipts.json --manifest egress.jsonl
    """
    del debug
    with _libraries_on_stderr():
        from .audit import verify as check
        from .audit_words import verification_document, verification_words

        found = check(ledger, key=public_key(key), receipts=receipts, manifest=manifest)
    _answer(as_json, verification_document(found), verification_words(found))
    return found.status.exit_code


@app.command(epilog=EPILOG)
def recompute(
    ledgers: Ledgers,
    copies: Annotated[int, typer.Option(help="With one ledger: how many domains like it a person may be in.", min=1, max=50)] = 5,
    time_limit: TimeLimit = 120.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Compute epsilon from the records alone by three accountants, and what it means for a person in several domains.

    No number is printed unless two accountants agree within 0.02 or 1 %, and the third is not below them. Signatures are checked by verify.

    \b
    Examples:
      isthmus-audit recompute books-ledger.sqlite
      isthmus-audit recompute books-ledger.sqlite films-ledger.sqlite --json
    """
    del debug
    with _libraries_on_stderr():
        from .audit_words import recomputation_document, recomputation_words
        from .recompute import recompute as compute

        found = compute(ledgers, copies=copies, time_limit_s=time_limit)
    _answer(as_json, recomputation_document(found), recomputation_words(found))
    return 0 if found.agree else NOT_VERIFIED


@app.command(epilog=EPILOG)
def report(
    ledgers: Ledgers,
    out: Annotated[Path, typer.Option(help="The HTML page to write: one file, no network.", metavar="FILE.html")],
    key: Annotated[list[str] | None, typer.Option(help="Public key of each ledger, in their order.", metavar="PUB")] = None,
    receipts: ReceiptsFile = None,
    manifest: Annotated[list[Path] | None, typer.Option(help="Egress manifest of each ledger, in their order.", metavar="FILE")] = None,
    about: Annotated[Path | None, typer.Option(help="What only people can say about the deployment, as TOML.", metavar="FILE.toml")] = None,
    json_out: Annotated[Path | None, typer.Option(help="The same as JSON.", metavar="FILE.json")] = None,
    time_limit: TimeLimit = 120.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Write the privacy officer's report: one page, and the same as JSON.

    Its status is WITHIN BUDGET (exit code 0), WITHIN RAISED BUDGET (33), EXCEEDED (32) or NOT VERIFIED (34).

    \b
    Example:
      isthmus-audit report books-ledger.sqlite --key books.keys.json --receipts receipts.json --manifest egress.jsonl --out books.html
    """
    del debug
    keys = _one_each("--key", [public_key(one) for one in key or ()], ledgers)
    manifests = _one_each("--manifest", manifest or (), ledgers)
    with _libraries_on_stderr():
        from .report import write
        from .report_domain import Evidence

        evidence = [
            Evidence(ledger=ledger, key=one, receipts=receipts, manifest=left)
            for ledger, one, left in zip(ledgers, keys, manifests, strict=True)
        ]
        made = write(evidence, out=out, json_out=json_out, about=about, time_limit_s=time_limit)
    document = {"status": made["status"], "reasons": made["reasons"], "page": str(out), "json": None if json_out is None else str(json_out)}
    lines = [f"  {one['domain']}: {one['what']}" for one in made["reasons"] if one["leads_to"] is not None]
    _answer(as_json, document, "\n".join([f"{made['status']}: {out}", *lines]))
    return _REPORT_CODES.get(made["status"], NOT_VERIFIED)


_REPORT_CODES = {"WITHIN BUDGET": 0, "WITHIN RAISED BUDGET": 33, "EXCEEDED": 32}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and leaves with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = command_of(app)
    code = guarded(
        lambda: command.main(args=given, prog_name="isthmus-audit", standalone_mode=False),
        debug="--debug" in given,
        on_error=(lambda error, code: _print(error_record(error, code))) if "--json" in given else None,
    )
    sys.exit(code)


def public_key(given: str) -> str:
    """A public key from its 64 hex digits, or from a public-key file.

    Raises:
        AuditError: it is neither.
    """
    from .signing import is_verify_key

    if is_verify_key(given):
        return given
    do = "Give the file that 'isthmus-client ledger export' or 'passport keys' wrote, or the 64 hex digits of its verify_key."
    try:
        content = json.loads(Path(given).read_text(encoding="utf-8"))
    except OSError:
        raise AuditError(f"the public key '{given}' is no file that can be read", do=do) from None
    except (ValueError, RecursionError):
        raise AuditError(f"{given} is no public-key file", do=do) from None
    found = content.get("verify_key") if isinstance(content, dict) else None
    if not isinstance(found, str) or not is_verify_key(found):
        raise AuditError(f"{given} holds no verify_key", do=do)
    return found


def _one_each(option: str, given: Sequence[Any], ledgers: Sequence[Path]) -> list[Any]:
    """One value for each ledger; none at all is allowed, and said in the report."""
    if given and len(given) != len(ledgers):
        raise UsageError(
            f"{len(ledgers)} ledgers and {len(given)} times {option}", do=f"Give {option} once for each ledger, in their order."
        )
    return list(given) or [None] * len(ledgers)


@contextlib.contextmanager
def _libraries_on_stderr() -> Iterator[None]:
    """Standard output is kept for the answer, whatever a library prints while it works."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _answer(as_json: bool, document: Mapping[str, Any], words: str) -> None:
    if as_json:
        _print(document)
    else:
        print(words)


def _print(document: Mapping[str, Any]) -> None:
    print(json.dumps(document, indent=1, allow_nan=False))


if __name__ == "__main__":
    main()
