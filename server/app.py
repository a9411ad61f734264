"""The `ServerApp`: the coordinator as Flower runs it.

In a deployment ``run`` in Flower's run configuration names a run folder that `server.runs` made on this host, which holds ``run.toml``; or
any TOML file, whose run folder is ``runs/NAME`` beside it. Beside the TOML file may lie ``partners.toml`` (who is enrolled, see
`server.partners`) and ``nodes.json`` (which node is whose, see `server.nodes`), and ``receipts.json`` keeps the last receipt of every
domain from run to run. Where ``coordinator.keys`` lies there too, the run is signed with it, for the bundle whose digest ``bundle.sha256``
holds (see `server.run_contract`). Each of them may be a link. Where the run folder holds an unfinished run of the same configuration it is
resumed, so after a crash the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

if TYPE_CHECKING:
    from shared.config import RunConfig

    from .strategy import Outcome

RUN_FILE = "run.toml"
"""In a run folder that `server.runs` made."""


def run_federation(grid: Grid, config: RunConfig, folder: Path, *, resume: bool = False, **how: Any) -> Outcome:
    """One run over any Flower Grid.

    Args:
        config: the noise multiplier is solved here when it is 0.
        folder: of the run; it must exist.
        resume: go on from the newest checkpoint in it.
        how: ``start`` (a `Checkpoint` of another run, for controls), and the further fields of `Coordinator`: ``partners``,
            ``expected_clients``, ``progress``, ``before_rounds``, ``text_dimension``, ``receipts``, ``signing``.
    """
    from .schedule import solved
    from .strategy import Coordinator

    start = how.pop("start", None)
    return Coordinator(grid=grid, config=solved(config), folder=folder, **how).run(resume=resume, start=start)


def build_server_app(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    done: Callable[[Outcome], None] | None = None,
    failed: Callable[[BaseException], None] | None = None,
    around: Callable[[Grid], Grid] | None = None,
    **how: Any,
) -> ServerApp:
    """A `ServerApp` for one run; arguments as in `run_federation`.

    Args:
        done: receives the outcome, because Flower drops what a server app returns.
        failed: receives what ended the run, before Flower does.
        around: wraps the grid.
    """
    built = ServerApp()

    @built.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        try:
            outcome = run_federation(around(grid) if around else grid, config, folder, resume=resume, **how)
        except BaseException as error:
            if failed is not None:
                failed(error)
            raise
        if done is not None:
            done(outcome)

    return built


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs what ``run`` names."""
    import functools
    import json

    from shared.config import RunConfig

    from . import nodes
    from .checkpoints import Checkpoints, replace_file
    from .journal import keeping
    from .partners import PARTNERS_FILE, Partners
    from .privacy_overview import overview
    from .prompt_grid import PromptGrid
    from .receipts import RECEIPTS_FILE
    from .run_contract import Signing

    named = _named(str(context.run_config.get("run", "")))
    source = named / RUN_FILE if named.is_dir() else named
    config = RunConfig.from_toml(_read(source))
    folder = named if named.is_dir() else source.parent / "runs" / config.name
    folder.mkdir(parents=True, exist_ok=True)
    with keeping(folder, context.run_id) as journal:
        replace_file(folder / "config.toml", config.to_toml().encode())
        enrolled = source.with_name(PARTNERS_FILE)
        partners = Partners.from_toml(_read(enrolled)) if enrolled.is_file() else Partners()
        partners.registered = functools.partial(nodes.read, source.with_name(nodes.NODES_FILE))
        resume = bool(Checkpoints(folder / "transfer_layer").rounds())
        receipts = source.with_name(RECEIPTS_FILE).resolve()  # it is replaced as a whole, and a link must stay one
        how = {"partners": partners, "receipts": receipts, "signing": Signing.beside(source), "progress": journal.progress}
        outcome = run_federation(PromptGrid(grid), config, folder, resume=resume, expected_clients=_expected(folder), **how)
        spent = overview(outcome.receipts, config.privacy.delta)
        replace_file(folder / "privacy_overview.json", (json.dumps(spent.to_json(), indent=1) + "\n").encode())


def _named(path: str) -> Path:
    from shared.errors import ConfigError

    if not path:
        raise ConfigError(
            "no run is named", do="Start it with --run-config 'run=\"/path/to/run.toml\"'; the file is on the ServerApp's host."
        )
    return Path(path)


def _expected(folder: Path) -> int | None:
    """How many clients were connected when the run was submitted: it need not wait for a partner who is known to be away."""
    from .run_record import RunRecord

    record = RunRecord.find(folder)
    return None if record is None else record.expected_clients


def _read(path: Path) -> str:
    from shared.errors import ConfigError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path} cannot be read", do="Name a TOML file that the ServerApp's host can read.") from None
