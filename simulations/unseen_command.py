"""`isthmus-simulate unseen`: how a delivered layer meets a domain that took no part."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_options import AsJson, Data, Debug, Out, Override, Quiet, epsilon_from, overrides_from
from .console import Console

if TYPE_CHECKING:
    from .bootstrap import Interval
    from .unseen_domain import Shot, Unseen

_FIGURES = ("hr@10", "ndcg@10", "mrr")
_ROWS = ("popularity", "text", "identity", "federated", "adapted", "maml-adapted")


def register(app: typer.Typer, epilog: str) -> None:
    """Adds the command to the app of `simulations.cli`."""
    app.command("unseen", epilog=epilog)(unseen)


def unseen(
    scenario: Annotated[str, typer.Argument(help="demo, amazon3, or the path of a TOML file: three domains or more.")],
    domain: Annotated[str, typer.Option(help="The domain that takes no part.")],
    seed: Annotated[int, typer.Option(help="Seed of everything but privacy noise.", min=0)] = 0,
    split_seed: Annotated[int, typer.Option(help="Names who is held out.", min=0)] = 0,
    epsilon: Annotated[
        str | None, typer.Option(help="Budget of the run in each domain; none = without privacy. As the scenario says when left out.")
    ] = None,
    data: Data = None,
    out: Out = Path("runs"),
    overrides: Override = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Leave one domain out, train the others, and meet it: 0, 1, 5 and 20 interactions.

    Two federations of the others are run, one with the scenario's method and one with 'maml'; nothing is trained at the unseen domain.

    \b
    Examples:
      isthmus-simulate unseen demo --domain music
      isthmus-simulate unseen amazon3 --domain food --data DIR --epsilon 2 --json
    """
    del debug
    console = Console(as_json=as_json, quiet=quiet)
    with console.working():
        from .unseen_domain import Plan, measure

        plan = Plan(
            scenario=scenario,
            domain=domain,
            out=out,
            seed=seed,
            split_seed=split_seed,
            epsilon=None if epsilon is None else epsilon_from(epsilon),
            data=data,
            overrides=overrides_from(overrides),
        )
        with console.progress() as progress:
            found = measure(plan, progress, None if quiet else console.note)
    if as_json:
        console.document(found.to_json())
    elif quiet:
        print(found.folder)
    else:
        print("\n".join(lines(found)))


def lines(found: Unseen) -> list[str]:
    """Tables in Markdown, one for each number of known interactions."""
    said = [f"# {found.domain}, met by what {' and '.join(found.others)} learned at epsilon {found.epsilon:g}", ""]
    for shot in found.shots:
        said += _table(shot)
    return [*said, str(found.folder)]


def _table(shot: Shot) -> list[str]:
    plural = "" if shot.k == 1 else "s"
    said = [f"## {shot.k} interaction{plural} known, {shot.users:,} people", ""]
    if shot.users == 0:
        return [*said, "Nobody has more.", ""]
    said += [f"| row | {' | '.join(_FIGURES)} |", "|---" * (len(_FIGURES) + 1) + "|"]
    said += [f"| {row} | {' | '.join(_words(shot.figures[row][name]) for name in _FIGURES)} |" for row in _ROWS]
    said += ["", "| hr@10 | difference | |", "|---|---|---|"]
    for one in shot.differences:
        verdict = "beats" if one.beats else "does not beat" if one.does_not_beat else "is below"
        said.append(f"| {one.a} - {one.b} | {_words(one.interval, sign='+')} | {one.a} {verdict} {one.b} |")
    return [*said, ""]


def _words(interval: Interval, sign: str = "") -> str:
    bounds = "" if math.isnan(interval.low) else f" [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
    return f"{interval.mean:{sign}.3f}{bounds}"
