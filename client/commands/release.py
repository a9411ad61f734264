"""`isthmus-client release`: numbers about a domain with noise of their own, debited in its ledger.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import UsageError

from .answers import AsJson, Debug, Settings, answer, epilog, libraries_on_stderr, progress, read_settings

if TYPE_CHECKING:
    from ..releases import Ask, Price, Released

EPILOG = epilog(0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 17, 18, 19, 20, 21, 22, 24, 130)
release = typer.Typer(
    help="DP releases: popularity, number of users, a metric. Each is debited in the ledger before any data are read.",
    epilog=EPILOG,
    no_args_is_help=True,
)

Noise = Annotated[
    float, typer.Option(help="Noise multiplier: standard deviation of the noise over the most that one user can change.", metavar="SIGMA")
]
Out = Annotated[Path | None, typer.Option(help="The file to hand over.", metavar="FILE")]
Id = Annotated[
    str, typer.Option("--id", help="Names the release; left out, it is named by what is asked for. A new id is a new debit.", metavar="ID")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the price and end: no data are read, nothing is booked.")]


@release.command(epilog=EPILOG)
def popularity(
    partner_toml: Settings,
    noise: Noise,
    max_items: Annotated[int, typer.Option(help="Items that one user counts for at most: the latest of theirs.", metavar="M")] = 10,
    out: Out = None,
    id: Id = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """How many users took each item of the catalogue, with noise of SIGMA x sqrt(M).

    Asking again for the same gives the same bytes and costs nothing; for the data of today give a new --id, which is debited.

    \b
    Examples:
      isthmus-client release popularity partner.toml --noise 8 --max-items 20 --dry-run
      isthmus-client release popularity partner.toml --noise 8 --max-items 20 --out popularity.json
    """
    del debug
    from ..releases import POPULARITY, Ask

    _answer(partner_toml, Ask(purpose=POPULARITY, noise_multiplier=noise, max_items=max_items, release_id=id), out, dry_run, as_json)


@release.command(epilog=EPILOG)
def count(
    partner_toml: Settings,
    noise: Noise,
    out: Out = None,
    id: Id = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """How many users this domain has, with noise of SIGMA.

    \b
    Example:
      isthmus-client release count partner.toml --noise 10 --out users.json
    """
    del debug
    from ..releases import COUNT, Ask

    _answer(partner_toml, Ask(purpose=COUNT, noise_multiplier=noise, release_id=id), out, dry_run, as_json)


@release.command(epilog=EPILOG)
def metric(
    partner_toml: Settings,
    noise: Noise,
    public_users: Annotated[
        int,
        typer.Option(help="What the noisy number of hits is divided by: known without the data, such as a released count.", metavar="N0"),
    ],
    out: Out = None,
    id: Id = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Hit rate at 10: how often a user's latest item is among the first 10, ranked by the trained encoder on their other items.

    Only what was trained under differential privacy, and the public catalogue, rank: the serving head was fitted on exact data of
    everybody, so it takes no part. Unless a benchmark kept the latest items back, they were trained on too.

    \b
    Example:
      isthmus-client release metric partner.toml --noise 10 --public-users 50000 --out hit-rate.json
    """
    del debug
    from ..releases import METRIC, Ask

    _answer(partner_toml, Ask(purpose=METRIC, noise_multiplier=noise, public_users=public_users, release_id=id), out, dry_run, as_json)


def _answer(partner_toml: Path, ask: Ask, out: Path | None, dry_run: bool, as_json: bool) -> None:
    settings = read_settings(partner_toml)
    if not dry_run and out is None:
        raise UsageError("no file is named for the release", do="Give --out FILE, or --dry-run to see the price.")
    with libraries_on_stderr():
        from ..releases import price
        from ..releases import release as make

        if dry_run:
            found = price(settings, ask)
        else:
            made = make(settings, ask, out=out, progress=progress())
    if dry_run:
        answer(as_json, {"domain": settings.domain, **dataclasses.asdict(found)}, _price(found))
    else:
        said = {name: value for name, value in made.document.items() if name != "values"}
        answer(as_json, {**said, "file": str(out), "new": made.new}, _released(made, str(out)))


def _price(found: Price) -> str:
    if found.made:
        return f"'{found.release_id}' was made already: asking for it again costs nothing"
    verdict = "it fits" if found.fits else found.why or "it does not fit below the ceiling"
    return (
        f"epsilon of this release alone {found.alone:.4f} (delta {found.delta:g}); standard deviation of the noise "
        f"{found.standard_deviation:.4g}\nledger, reservations included: {found.before:.4f} before, {found.after:.4f} after, "
        f"ceiling {found.ceiling:.4f}: {verdict}\nnothing was read or booked; id '{found.release_id}'"
    )


def _released(made: Released, file: str) -> str:
    said = made.document
    what = "made and debited" if made.new else "made before: the same bytes, no debit"
    stamp = f"\n{said['stamp']}" if "stamp" in said else ""
    alone, after, ceiling = (float(said[name]) for name in ("epsilon_of_this_release", "epsilon_of_the_ledger_after_it", "ceiling_epsilon"))
    return (
        f"{said['release_id']}: {what}\nepsilon of this release alone {alone:.4f}, of the ledger after it {after:.4f} of {ceiling:.4f} "
        f"(delta {said['delta']:g})\n{file}{stamp}"
    )
