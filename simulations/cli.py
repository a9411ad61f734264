"""isthmus-simulate: run a scenario, compare methods, seeds and budgets, render a report.

Heavy libraries are imported inside the commands, after the environment was set: ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from shared import errors
from shared.errors import UsageError

from . import unseen_command
from .cli_comparisons import register
from .cli_options import AsJson, Data, Debug, Engine, Out, Override, Quiet, engine_from, epsilon_from, overrides_from
from .console import Console, command_of, error_record, guarded

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "MPLBACKEND": "Agg",
}
"""Set before the libraries start, unless the caller set them: no hub, no telemetry, no update check, no installation while running."""

EXIT_WORDS = {
    0: "done",
    1: "unexpected error (a log is named)",
    2: "wrong usage",
    3: "configuration",
    4: "data file",
    5: "run folder",
    6: "storage",
    7: "ledger",
    8: "ledger is locked",
    9: "ledger is broken",
    10: "budget is exhausted",
    11: "no noise reaches the target epsilon",
    12: "passport",
    13: "egress refused",
    14: "admission refused",
    15: "a client declined",
    16: "federation cannot go on",
    17: "client state",
    18: "not a ledger",
    19: "empty ledger",
    20: "ledger of a newer format",
    21: "event of unknown kind",
    22: "ledger is older than its receipt",
    24: "ledger is signed with another key",
    25: "receipts of another partner",
    130: "interrupted",
}
EPILOG = "Exit codes: " + ", ".join(f"{code} {words}" for code, words in EXIT_WORDS.items()) + "."

app = typer.Typer(
    help="The whole federation on one desk: the client and server apps that run at partners, on synthetic domains or on data of your own.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.command(epilog=EPILOG)
def run(
    scenario: Annotated[
        str | None, typer.Argument(help="demo, arts_office, amazon3, or the path of a TOML file; demo when left out.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything but privacy noise; 0 when left out.", min=0)] = None,
    split_seed: Annotated[int | None, typer.Option(help="Names who is held out; 0 when left out.", min=0)] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="Budget of the run in each domain; none = without privacy. As the scenario says when left out.")
    ] = None,
    engine: Engine = "in-process",
    data: Data = None,
    out: Out = Path("runs"),
    ledgers: Annotated[
        Path | None, typer.Option(help="Folder of ledgers that outlive the run: debits of several runs add up.", metavar="DIR")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run.", metavar="FOLDER")] = None,
    overrides: Override = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run one federation to its end: table, run folder, report.

    \b
    Examples:
      isthmus-simulate run
      isthmus-simulate run demo --epsilon 2 --seed 1
      isthmus-simulate run arts_office --data DIR --set privacy.rounds=20
      isthmus-simulate run --resume runs/FOLDER
    """
    del debug
    if resume is not None and any(value is not None for value in (scenario, seed, split_seed, epsilon, ledgers, overrides)):
        raise UsageError("--resume goes on as the run began", do="Leave out the scenario, seeds, --epsilon, --ledgers and --set.")
    console = Console(as_json=as_json, quiet=quiet)
    with console.working():
        from .comparison import FinishedRun
        from .report import write_report
        from .scenario import run_scenario
        from .tensorboard import write_tensorboard

        with console.progress() as progress, console.hint_at_resume(out, resume):
            folder = run_scenario(
                scenario or "demo",
                out=out,
                seed=seed or 0,
                split_seed=split_seed or 0,
                epsilon=None if epsilon is None else epsilon_from(epsilon),
                engine=engine_from(engine),
                data=data,
                ledgers=ledgers,
                resume=resume,
                overrides=overrides_from(overrides),
                progress=progress,
                note=None if quiet else console.note,
            )
        write_tensorboard(folder)
        report_file = write_report(folder)
        finished = FinishedRun.read(folder)
    if as_json:
        console.document({"run_folder": str(folder), "report": str(report_file), "metrics": finished.metrics.to_json()})
    else:
        console.run(finished, report_file)


@app.command(epilog=EPILOG)
def report(
    run_folder: Annotated[Path, typer.Argument(help="Folder that a run printed.", metavar="RUN_FOLDER")],
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Render report.html and the TensorBoard scalars of a finished run anew.

    \b
    Example:
      isthmus-simulate report runs/FOLDER
    """
    del debug
    console = Console(as_json=as_json, quiet=quiet)
    with console.working():
        from .comparison import FinishedRun
        from .report import write_report
        from .tensorboard import write_tensorboard

        report_file = write_report(run_folder)
        write_tensorboard(run_folder)
        finished = FinishedRun.read(run_folder)
    if as_json:
        console.document({"run_folder": str(run_folder), "report": str(report_file), "metrics": finished.metrics.to_json()})
    else:
        console.run(finished, report_file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: sets the environment, runs a command, leaves with its exit code and never with a traceback unless asked for one."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = command_of(app)
    code = guarded(
        lambda: command.main(args=given, prog_name="isthmus-simulate", standalone_mode=False),
        debug="--debug" in given,
        on_error=(lambda error, code: Console(as_json=True).document(error_record(error, code))) if "--json" in given else None,
    )
    sys.exit(code)


register(app, EPILOG)
unseen_command.register(app, EPILOG)


def exit_codes() -> dict[int, list[str]]:
    """Exit code -> names of the errors that leave with it."""
    found: dict[int, list[str]] = {}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.IsthmusError):
            found.setdefault(kind.exit_code, []).append(name)
    return found


if __name__ == "__main__":
    main()
