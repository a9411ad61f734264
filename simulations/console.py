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

    def comparison(self, comparison: Comparison, folder: Path) -> None:
        """Tables of a comparison, with differences and words."""
        if self.quiet:
            print(folder)
            return
        from . import tables
        from .findings import finding

        screen = _screen()
        screen.print(" ".join(f"[bold red]{s}[/]" for s in tables.stamps(synthetic=comparison.synthetic, private=comparison.private)))
        for result in comparison.results:
            name = f"{result.title}, epsilon {tables.epsilon_name(result.epsilon)}, {result.n_seeds} seeds"
            screen.print()
            screen.print(tables.method_table(name, result.methods, n_users=result.n_users))
            found = finding(result)
            if found is not None and result.source:
                screen.print(tables.difference_table(result))
                screen.print(f"{found.verdict}: {' '.join(found.sentences)}", highlight=False)
        screen.print()
        for epsilon in comparison.epsilons:
            private = any(run.metrics.private for run in comparison.runs if run.metrics.epsilon_target == epsilon)
            screen.print(tables.caption(epsilon=epsilon, delta=comparison.delta, private=private), style="dim", highlight=False)
        screen.print()
        self._paths({"comparison": folder / "compare.md", "for machines": folder / "compare.json"})

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
