"""simulations/RESULTS.md: what the shipped synthetic domains give, with the command that makes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from .compare_runs import Plan, Watch, compare_runs
from .comparison import Comparison
from .comparison_markdown import comparison_markdown
from .curves import pictures
from .json_files import replace_file
from .variants import ENCODER, METHOD, SHARING

COMMAND = "isthmus-simulate results --write simulations/RESULTS.md"
PICTURES = "results"


def shipped(folder: Path, *, jobs: int) -> list[Plan]:
    """The comparison of `demo` that comes with isthmus: the default at every epsilon, other methods, encoders and sharings at two."""
    every, two = (math.inf, 8.0, 4.0, 2.0, 1.0), (8.0, 2.0)
    plans: list[tuple[tuple[float, ...], dict[str, Sequence[str]], tuple[str, ...] | None]] = [
        (every, {}, None),
        (two, {METHOD: ("residual", "adversarial", "maml", "knowledge-mf")}, ()),
        (two, {ENCODER: ("attention", "transformer")}, ()),
        (two, {SHARING: ("shared", "shared-private", "private-writer", "private-bias")}, ()),
    ]
    return [
        Plan(
            scenario="demo",
            folder=folder,
            epsilons=epsilons,
            seeds=(3, 4, 5),  # the demo was made on seeds 0 to 2
            axes=axes,
            target_only=target_only,
            jobs=jobs,
            command=COMMAND,
        )
        for epsilons, axes, target_only in plans
    ]


def run_shipped(folder: Path, *, jobs: int, watch: Watch) -> None:
    """Makes the runs that are not there yet.

    Raises:
        IsthmusError: of a run that failed.
    """
    for plan in shipped(folder, jobs=jobs):
        compare_runs(plan, watch=watch)


def write_results(comparison: Comparison, folder: Path, path: Path) -> None:
    """Writes the page and, in a folder beside it, its pictures.

    Raises:
        StorageError: when something cannot be written.
    """
    drawn = pictures(comparison)
    for picture in drawn:
        picture.write(path.parent / PICTURES, ["svg"])
    text = comparison_markdown(comparison, [(picture.title, f"{PICTURES}/{picture.name}.svg") for picture in drawn])
    replace_file(path, lambda file: file.write(text.encode()))
