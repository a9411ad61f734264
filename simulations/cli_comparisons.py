"""The commands that make many runs: compare, sweep, results."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import UsageError

from .cli_options import (
    AsJson,
    Data,
    Debug,
    Engine,
    Override,
    Quiet,
    engine_from,
    epsilon_from,
    overrides_from,
    parts,
    seed_from,
    varied_from,
)
from .console import Console

if TYPE_CHECKING:
    from .compare_runs import Plan
    from .comparison import Comparison

Scenario = Annotated[str, typer.Argument(help="demo, arts_office, amazon3, or the path of a TOML file.")]
Epsilons = Annotated[str, typer.Option(help="Budgets, separated by commas; none or inf = without privacy.")]
Seeds = Annotated[str, typer.Option(help="Seeds, separated by commas; each is run seed and split seed.")]
Jobs = Annotated[int, typer.Option(help="Runs at a time, each in a process of its own; 0 = one for each core.", min=0, max=1024)]
TargetOnly = Annotated[
    str, typer.Option(help="Methods that are also trained at each target alone: all, none, or names with commas. It doubles their time.")
]
Vary = Annotated[
    list[str] | None,
    typer.Option("--vary", help="A configuration key and the values it takes in turn; may be repeated.", metavar="KEY=VALUE,VALUE"),
]
_AXES = {"methods": "model.method", "encoders": "model.encoder", "sharing": "model.sharing", "strategies": "aggregation.strategy"}


def register(app: typer.Typer, epilog: str) -> None:
    """Adds the commands to the program."""
    for command in (compare, sweep, results):
        app.command(epilog=epilog)(command)


def compare(
    scenario: Scenario,
    methods: Annotated[str | None, typer.Option(help="Methods, separated by commas; the scenario's own when left out.")] = None,
    encoders: Annotated[str | None, typer.Option(help="Encoders, the same way.")] = None,
    sharing: Annotated[str | None, typer.Option(help="What the server averages, the same way.")] = None,
    strategies: Annotated[str | None, typer.Option(help="The server's strategies, the same way.")] = None,
    vary: Vary = None,
    epsilons: Epsilons = "8,2",
    seeds: Seeds = "0,1,2,3,4",
    target_only: TargetOnly = "all",
    jobs: Jobs = 1,
    engine: Engine = "in-process",
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Folder of this comparison; runs/compare-SCENARIO when left out.", metavar="DIR")] = None,
    overrides: Override = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run every combination of method, encoder, sharing, epsilon and seed, and say, with intervals, what beats what.

    Finished runs in the folder are kept, interrupted ones are resumed: call it again after a break. Each run opens ledgers of its own.
    Choices are made by validation people, figures are of cold people.

    \b
    Examples:
      isthmus-simulate compare demo --epsilons 8,2 --seeds 0,1,2
      isthmus-simulate compare demo --methods residual,maml --epsilons inf,8,2 --jobs 2
      isthmus-simulate compare arts_office --data DIR --vary data.linked_users=100,300 --epsilons 2
      isthmus-simulate compare arts_office --data DIR --json
    """
    del debug
    asked = {"methods": methods, "encoders": encoders, "sharing": sharing, "strategies": strategies}
    axes: dict[str, Sequence[Any]] = {_AXES[name]: parts(text, f"--{name}") for name, text in asked.items() if text is not None}
    named = {f"--{name}": text for name, text in asked.items() if text is not None}
    plan = _plan(
        f"compare {scenario}",
        scenario,
        out or Path("runs") / f"compare-{Path(scenario).stem}",
        axes | varied_from(vary),
        {**named, "--epsilons": epsilons, "--seeds": seeds, "--target-only": target_only},
        vary=vary,
        overrides=overrides,
        jobs=jobs,
        engine=engine,
        data=data,
    )
    _run(plan, Console(as_json=as_json, quiet=quiet))


def sweep(
    scenario: Scenario,
    epsilons: Epsilons = "inf,8,4,2,1",
    seeds: Seeds = "0,1,2",
    vary: Vary = None,
    target_only: TargetOnly = "none",
    jobs: Jobs = 1,
    engine: Engine = "in-process",
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Folder of this sweep; runs/sweep-SCENARIO when left out.", metavar="DIR")] = None,
    overrides: Override = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run one model at several epsilons, and if wanted with several values of one configuration key: the privacy-utility curve.

    \b
    Examples:
      isthmus-simulate sweep demo --jobs 2
      isthmus-simulate sweep demo --epsilons 8,2 --vary model.rank=4,8,16 --set privacy.rounds=10
    """
    del debug
    axes = varied_from(vary)
    if len(axes) > 1:
        raise UsageError("a sweep varies one key", do="Use isthmus-simulate compare for several.")
    plan = _plan(
        f"sweep {scenario}",
        scenario,
        out or Path("runs") / f"sweep-{Path(scenario).stem}",
        axes,
        {"--epsilons": epsilons, "--seeds": seeds, "--target-only": target_only},
        vary=vary,
        overrides=overrides,
        jobs=jobs,
        engine=engine,
        data=data,
    )
    _run(plan, Console(as_json=as_json, quiet=quiet))


def results(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of a comparison; without one the shipped comparison of the demo is run.", metavar="[FOLDER]"),
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", help="Also write the page and its pictures here, e.g. simulations/RESULTS.md.", metavar="FILE")
    ] = None,
    jobs: Jobs = 1,
    out: Annotated[Path, typer.Option(help="Folder of the shipped comparison's runs.", metavar="DIR")] = Path("runs/results"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare everything that is finished in a comparison's folder, whatever call made it; without a folder run what RESULTS.md shows.

    \b
    Examples:
      isthmus-simulate results runs/compare-demo
      isthmus-simulate results --jobs 2 --write simulations/RESULTS.md
    """
    del debug
    console = Console(as_json=as_json, quiet=quiet)
    with console.working():
        from .compare_runs import compare_finished_runs
        from .results import run_shipped, write_results

        with console.watching(_jobs(jobs)) as watch:
            if folder is None:
                folder = out
                run_shipped(folder, jobs=_jobs(jobs), watch=watch)
            comparison = compare_finished_runs(folder, watch=watch)
            if write is not None:
                write_results(comparison, folder, write)
    _say(console, comparison, folder)


def _plan(
    command: str,
    scenario: str,
    folder: Path,
    axes: Mapping[str, Sequence[Any]],
    named: Mapping[str, str],
    *,
    vary: Sequence[str] | None,
    overrides: Sequence[str] | None,
    jobs: int,
    engine: str,
    data: Path | None,
) -> Plan:
    """A plan and the command that asks for it again; where the data and the runs lie is no part of what the page shows."""
    from .compare_runs import Plan

    target_only = named["--target-only"]
    words = ["isthmus-simulate", *command.split(), *(word for pair in named.items() for word in pair)]
    words += [word for pair in vary or () for word in ("--vary", pair)] + [word for pair in overrides or () for word in ("--set", pair)]
    return Plan(
        scenario=scenario,
        folder=folder,
        epsilons=tuple(dict.fromkeys(epsilon_from(part) for part in parts(named["--epsilons"], "--epsilons"))),
        seeds=tuple(dict.fromkeys(seed_from(part) for part in parts(named["--seeds"], "--seeds"))),
        engine=engine_from(engine),
        data=data,
        overrides=overrides_from(overrides),
        axes=axes,
        target_only=None if target_only == "all" else () if target_only == "none" else tuple(parts(target_only, "--target-only")),
        jobs=_jobs(jobs),
        command=shlex.join(words),
    )


def _jobs(jobs: int) -> int:
    import os

    return jobs or os.cpu_count() or 1


def _run(plan: Plan, console: Console) -> None:
    with console.working():
        from .compare_runs import compare_runs

        with console.watching(plan.jobs) as watch:
            try:
                comparison = compare_runs(plan, watch=watch)
            except KeyboardInterrupt:
                console.note("Broken off. The same command goes on where this one ended.")
                raise
    _say(console, comparison, plan.folder)


def _say(console: Console, comparison: Comparison, folder: Path) -> None:
    if console.as_json:
        console.document({"folder": str(folder), **comparison.to_json()})
    else:
        console.comparison(comparison, folder)
