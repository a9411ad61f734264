"""Speed, as ratios measured in one run: ``make bench``.

Each ``bench_*.py`` beside this file has ``run(quick: bool) -> dict[str, float]`` (name of the figure -> figure) and, where a figure has an
aim, ``AIMS: dict[str, tuple[str, float]]`` (name -> ("<=" or ">=", bound)). A missed aim is shown, and ends the command with 1 only under
``--strict``: a busy machine is not a defect of the code.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure beside its aim."""

    bench: str
    name: str
    value: float
    aim: str
    met: bool | None


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def judge(bench: str, measured: dict[str, float], aims: dict[str, tuple[str, float]]) -> list[Figure]:
    """Sets each figure beside its aim; an aim that no figure answers is an error, so that a renamed figure cannot lose it."""
    unanswered = set(aims) - set(measured)
    if unanswered:
        raise KeyError(f"{bench}: no figure for the aim(s) {', '.join(sorted(unanswered))}")
    figures = []
    for name, value in measured.items():
        sign, bound = aims.get(name, ("", 0.0))
        if sign not in ("", "<=", ">="):
            raise ValueError(f"{bench}: the aim of '{name}' is neither '<=' nor '>='")
        met = None if not sign else (value <= bound if sign == "<=" else value >= bound)
        figures.append(Figure(bench=bench, name=name, value=value, aim=f"{sign} {bound:g}" if sign else "", met=met))
    return figures


def show(figures: list[Figure], seconds: float) -> None:
    table = Table(title=f"isthmus bench ({seconds:.0f} s)", title_justify="left")
    table.add_column("bench")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("aim")
    table.add_column("")
    for figure in figures:
        verdict = {None: "", True: "met", False: "[bold red]missed"}[figure.met]
        table.add_row(figure.bench, figure.name, f"{figure.value:.3g}", figure.aim, verdict)
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description="Speed, as ratios measured in one run.")
    parser.add_argument("names", nargs="*", help="benches to run, without 'bench_' and '.py'; all of them when none is named")
    parser.add_argument("--quick", action="store_true", help="smaller sizes: does it run at all?")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when an aim is missed")
    options = parser.parse_args()
    found = {path.stem.removeprefix("bench_"): path for path in sorted(Path(__file__).parent.glob("bench_*.py"))}
    unknown = sorted(set(options.names) - set(found))
    if unknown or not found:
        parser.error(f"no bench named {', '.join(unknown)}; there are: {', '.join(found)}" if unknown else "no bench_*.py beside run.py")
    start = time.perf_counter()
    figures: list[Figure] = []
    for name in options.names or found:
        module = load(found[name])
        if not options.json:
            Console(stderr=True).print(f"running {name} ...")
        figures += judge(name, module.run(quick=options.quick), getattr(module, "AIMS", {}))
    if options.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=2))
    else:
        show(figures, time.perf_counter() - start)
    return 1 if options.strict and any(figure.met is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
