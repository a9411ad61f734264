"""`isthmus-client allow` and `allowed`: which bundles may run at this partner.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import UsageError

from .answers import AsJson, Debug, Settings, answer, epilog, read_settings

if TYPE_CHECKING:
    from ..allowed import Decision

EPILOG = epilog(0, 1, 2, 3, 4, 6, 130)


def allow(
    partner_toml: Settings,
    bundle: Annotated[str, typer.Argument(help="The .fab file, or the sha256 of it in hex.", metavar="DIGEST|FILE")],
    by: Annotated[str, typer.Option(help="Who decides; kept in the list.", metavar="NAME")],
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take the permission back: the bundle is refused from its next message on.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Let a bundle run at this partner, by the sha256 of its file. Nothing else ever runs.

    With the file at hand it is looked at, and not run: it may hold nothing but modules of client, server and shared. You are told where its
    code differs from the code that is installed here, which is the code you read and tested. A bare digest is taken as it is: compare it
    with the coordinator's over another way than the one it came by.

    \b
    Examples:
      isthmus-client allow partner.toml isthmus.fab --by "A. Officer"
      isthmus-client allow partner.toml isthmus.fab --by "A. Officer" --withdraw
    """
    del debug
    from shared.bundle import is_digest, project_folder, read_file

    from ..allowed import FILE, AllowList

    settings = read_settings(partner_toml)
    differences: tuple[str, ...] | None = None
    digest, name, code_digest = bundle.lower(), "", ""
    if not is_digest(digest):
        if not Path(bundle).exists():
            raise UsageError(f"{bundle} is neither a file nor a sha256", do="Name the .fab file, or give the 64 digits of its sha256.")
        looked_at = read_file(Path(bundle))
        digest, name, code_digest = looked_at.digest, f"{looked_at.name} {looked_at.version}", looked_at.code_digest()
        differences = looked_at.differences(project_folder())
    decision = AllowList(settings.at_home(FILE)).decide(digest, allowed=not withdraw, by=by, name=name, code_digest=code_digest)
    record = {**_record(decision), "domain": settings.domain, "differs_from_installed": None if differences is None else list(differences)}
    answer(as_json, record, _words(decision, settings.domain, differences))


def allowed(partner_toml: Settings, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the bundles that may run at this partner, and who decided so.

    \b
    Example:
      isthmus-client allowed partner.toml
    """
    del debug
    from ..allowed import FILE, AllowList

    settings = read_settings(partner_toml)
    listed = AllowList(settings.at_home(FILE)).allowed()
    words = [f"{each.digest}  {each.name or '(file not looked at)'}  allowed by {each.by} on {each.when[:10]}" for each in listed]
    nothing = f"no bundle may run at '{settings.domain}': allow one with isthmus-client allow PARTNER_TOML FILE --by NAME"
    answer(as_json, {"domain": settings.domain, "allowed": [_record(each) for each in listed]}, "\n".join(words) or nothing)


def _record(decision: Decision) -> dict[str, Any]:
    return asdict(decision)


def _words(decision: Decision, domain: str, differences: tuple[str, ...] | None) -> str:
    if not decision.allowed:
        return f"no longer allowed at '{domain}': {decision.digest}"
    said = [f"allowed at '{domain}': {decision.digest}"]
    if differences is None:
        said.append("the file was not looked at")
    elif differences:
        said.append(f"{decision.name}; {len(differences):,} modules differ from the code that is installed here:")
        said += [f"  {path}" for path in differences[:20]] + (["  ..."] if len(differences) > 20 else [])
    else:
        said.append(f"{decision.name}; its code is the code that is installed here, byte for byte")
    return "\n".join(said)
