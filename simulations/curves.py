"""Privacy-utility curves: one picture for each direction and one for the mean over directions, as SVG in a page and as files beside it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from .bootstrap import Interval
from .comparison import Comparison, Pooled
from .json_files import replace_file
from .plots import ACCENT, CEILING, LINE, MUTED, SERIES, STYLE, inline_svg
from .run_slots import epsilon_name

_MARKERS = "osD^vPX*"
_SHIFT = 0.05
_WIDTH_IN, _AXES_IN, _LEGEND_ROW_IN, _LEGEND_COLUMNS = 7.4, 3.0, 0.2, 2
_CONTROLS = (
    ("popularity", MUTED, (0, (4, 3))),
    ("linked-popularity", MUTED, (0, (1, 2))),
    ("head-only", "#b9a7cf", (0, (4, 3))),
    ("neighbours", "#7d8f6b", (0, (6, 2, 1, 2))),
    ("pooled-ridge", CEILING, (0, (5, 3))),
)
"""Rows that have no epsilon: drawn level, as a line without marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a picture: means and intervals by epsilon."""

    name: str
    points: tuple[tuple[float, Interval], ...]
    colour: str
    marker: str
    style: Any = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A drawn curve.

    Attributes:
        name: of the files, without their ending.
        title: of the direction.
        spoken: what a screen reader says.
        figure: the drawing.
    """

    name: str
    title: str
    spoken: str
    figure: Figure

    def svg(self) -> str:
        """For a page: the page's own letters, no width of its own."""
        with rc_context(STYLE):
            return inline_svg(self.figure, self.spoken)

    def write(self, folder: Path, endings: Sequence[str] = ("svg", "png")) -> list[Path]:
        """``NAME.svg`` and ``NAME.png``; the same figures, the same bytes."""
        return [_saved(self.figure, folder / f"{self.name}.{ending}") for ending in endings]


def _saved(figure: Figure, path: Path) -> Path:
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type") if path.suffix == ".svg" else ("Software",))
    drawn = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(drawn, format=path.suffix[1:], facecolor="white", dpi=160, metadata=metadata)
    replace_file(path, lambda file: file.write(drawn.getvalue()))
    return path


def pictures(comparison: Comparison, metric: str = "hr@10") -> list[Picture]:
    """The mean over directions first, where there are several, then each direction."""
    directions = list(dict.fromkeys((r.source, r.target) for r in comparison.results if r.source))
    found = []
    if len(directions) > 1 and comparison.overall:
        found.append(_picture(comparison, comparison.overall, "mean-over-directions", "Mean over directions", metric))
    for source, target in directions:
        results = [r for r in comparison.results if (r.source, r.target) == (source, target)]
        found.append(_picture(comparison, results, f"{source}-{target}", f"{source} → {target}", metric))
    return found


def _picture(comparison: Comparison, results: Sequence[Pooled], name: str, title: str, metric: str) -> Picture:
    lines = series(comparison, results, metric)
    epsilons = sorted({r.epsilon for r in results})
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        _draw(axes, lines, epsilons)
        _level(axes, results, metric, len(epsilons))
        legend_rows = math.ceil(len(axes.get_legend_handles_labels()[1]) / _LEGEND_COLUMNS)
        figure.set_size_inches(_WIDTH_IN, _AXES_IN + _LEGEND_ROW_IN * legend_rows)
        axes.set_xticks(range(len(epsilons)), [epsilon_name(epsilon) for epsilon in epsilons])
        axes.set_xlim(-0.4, len(epsilons) - 0.6)
        axes.grid(axis="y", color=LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("epsilon of the run (none = without privacy)")
        axes.set_ylabel("HR@10" if metric == "hr@10" else "nDCG@10")
        axes.set_title(title, loc="left", fontsize=11)
        figure.legend(loc="outside lower left", ncols=_LEGEND_COLUMNS)
    spoken = "; ".join(
        f"{line.name}: " + ", ".join(f"{found.mean:.3f} at epsilon {epsilon_name(epsilon)}" for epsilon, found in line.points)
        for line in lines
    )
    return Picture(name=name, title=title, spoken=f"HR@10 against epsilon with 95 % intervals, {title}: {spoken}", figure=figure)


def series(comparison: Comparison, results: Sequence[Pooled], metric: str) -> list[Series]:
    """A line for each variant's federation, and for the first one trained at each target alone; a single one has the shuffled row too."""
    variants = comparison.variants
    found = []
    for at, variant in enumerate(variants):
        of = sorted((r for r in results if r.variant == variant), key=lambda r: r.epsilon)
        colour, marker = SERIES[at % len(SERIES)], _MARKERS[at % len(_MARKERS)]
        rows: list[tuple[str, str, str, Any]] = [("federated", comparison.words(variant) or "federated", colour, "-")]
        if len(variants) == 1:
            rows += [
                ("target-only", "target-only", SERIES[1], (0, (5, 1, 1, 1))),
                ("federated-shuffled", "shuffled users", ACCENT, (0, (1, 1))),
            ]
        elif at == 0:
            rows.append(("target-only", f"{rows[0][1]}: target-only", colour, (0, (5, 1, 1, 1))))
        for method, name, shade, style in rows:
            points = tuple((r.epsilon, r.methods[method][metric]) for r in of if method in r.methods)
            if points:
                found.append(Series(name=name, points=points, colour=shade, marker=marker, style=style))
    return found


def _draw(axes: Any, lines: Sequence[Series], epsilons: Sequence[float]) -> None:
    for number, line in enumerate(lines):
        shift = _SHIFT * (number - (len(lines) - 1) / 2)
        at = [epsilons.index(epsilon) + shift for epsilon, _ in line.points]
        means = [found.mean for _, found in line.points]
        axes.plot(at, means, color=line.colour, linewidth=1.8, linestyle=line.style, marker=line.marker, markersize=5, label=line.name)
        for x, (_, found) in zip(at, line.points, strict=True):
            if math.isfinite(found.low) and math.isfinite(found.high):
                axes.plot([x, x], [found.low, found.high], color=line.colour, linewidth=1.4, alpha=0.55, solid_capstyle="butt")


def _level(axes: Any, results: Sequence[Pooled], metric: str, width: int) -> None:
    """Controls from the result with the most rows: they do not depend on epsilon, only on who was measured."""
    fullest = max(results, key=lambda r: r.n_users)
    for method, colour, style in _CONTROLS:
        if method in fullest.methods and math.isfinite(fullest.methods[method][metric].mean):
            height = fullest.methods[method][metric].mean
            axes.plot([-0.35, width - 0.65], [height, height], color=colour, linewidth=1.1, linestyle=style, label=method, zorder=1)
