"""What a person sees: progress and notes on standard error, tables or one JSON document on standard output, errors without tracebacks."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.console import command_of, error_record, guarded

if TYPE_CHECKING:
    from .compare_runs import Watch
    from .comparison import Comparison, FinishedRun

Progress = Callable[[str, int, int], None]
_NARROWEST = 80

__all__ = ["Console", "Progress", "command_of", "error_record", "guarded"]


class Console:
    """Output of one command.

    Args:
        as_json: standard output is kept for one JSON document.
        quiet: no progress and no tables.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """While the work is done nothing but standard error is written to, whatever a library or a child process prints."""
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 1)
            os.close(kept)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """A bar for the stage at work; one line for each stage where standard error is no terminal."""
        if self.quiet:
            yield lambda stage, done, total: None
            return
        if not sys.stderr.isatty():
            yield _lines()
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=RichConsole(stderr=True), transient=True) as bars:
            tasks: dict[str, Any] = {}

            def tell(stage: str, done: int, total: int) -> None:
                for other, task in tasks.items():
                    bars.update(task, visible=other == stage)
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total)
                bars.update(tasks[stage], completed=done, total=total, visible=True)

            yield tell

    @contextlib.contextmanager
    def hint_at_resume(self, out: Path, resume: Path | None) -> Iterator[None]:
        """When the work breaks off, says how to go on."""
        before = _unfinished(out)
        try:
            yield
        except BaseException:
            begun = [resume] if resume is not None else sorted(_unfinished(out) - before)
            if begun:
                self.note(f"Broken off. Go on with: isthmus-simulate run --resume {begun[-1]}")
            raise

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def document(self, values: Mapping[str, Any]) -> None:
        """The one JSON document."""
        print(json.dumps(values, indent=1, allow_nan=False))

    def run(self, run: FinishedRun, report: Path) -> None:
        """Tables of a finished run."""
        if self.quiet:
            print(run.folder)
            return
        from . import tables

        screen = _screen()
        screen.print(" ".join(f"[bold red]{stamp}[/]" for stamp in tables.stamps(synthetic=run.synthetic, private=run.metrics.private)))
        for direction in run.metrics.directions:
            screen.print()
            screen.print(tables.method_table(f"{direction.source} → {direction.target}", direction.methods, n_users=direction.n_users))
        screen.print()
        screen.print(tables.metrics_caption(run.metrics), style="dim", highlight=False)
        screen.print()
        screen.print(tables.privacy_table(run.metrics.privacy))
        screen.print()
        self._paths({"run folder": run.folder, "report": report})

    @contextlib.contextmanager
    def watching(self, jobs: int) -> Iterator[Watch]:
        """What a comparison does: one bar over all runs and one for each run at work; a line for each run where there is no terminal."""
        from .console_watch import Bars, Lines, Silence

        if self.quiet:
            yield Silence()
        elif not sys.stderr.isatty():
            yield Lines(jobs)
        else:
            with Bars(jobs) as bars:
                yield bars

    def comparison(self, comparison: Comparison, folder: Path) -> None:
        """Tables of a comparison, with differences and words; with several variants the short ones, the rest is in the page."""
        if self.quiet:
            print(folder)
            return
        from . import comparison_screen, tables

        screen = _screen()
        screen.print(" ".join(f"[bold red]{stamp}[/]" for stamp in tables.comparison_stamps(comparison)))
        comparison_screen.show(comparison, screen)
        screen.print()
        names = {"comparison": "compare.md", "as a page": "compare.html", "pictures": "pictures", "for machines": "compare.json"}
        self._paths({name: folder / file for name, file in names.items()})

    def _paths(self, paths: Mapping[str, Path]) -> None:
        for name, path in paths.items():
            print(f"{name:<13}{path}")


def _lines() -> Progress:
    """Progress for a log: a line whenever a stage begins."""
    seen: set[str] = set()

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in seen:
            seen.add(stage)
            print(f"{stage} ...", file=sys.stderr, flush=True)

    return tell


def _screen() -> Any:
    from rich.console import Console as RichConsole

    screen = RichConsole()
    return RichConsole(width=max(screen.width, _NARROWEST)) if not screen.is_terminal else screen


def _unfinished(out: Path) -> set[Path]:
    return {path.parent for path in out.glob("*/config.toml") if not (path.parent / "metrics.json").exists()}
