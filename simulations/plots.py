"""Plots of a report: inline SVG with real text, one for each figure, small enough to be read on a phone."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from .bootstrap import Interval

ACCENT = "#0f6e78"
MUTED = "#8a949c"
INK = "#22303a"
LINE = "#d5dbdf"
CEILING = "#b4532a"
SERIES = ("#0f6e78", "#b07d1a", "#6a4c93", "#3f7d3a", "#a23b52", "#42608a", "#7a5c46", "#c27ba0")
KIND_COLOURS = {
    "train": "#0f6e78",
    "query.moments": "#9cc5c9",
    "query.centroids": "#c9a24d",
    "query.descriptor": "#b9a7cf",
    "query.hello": "#8a949c",
    "query.deliver": "#d5dbdf",
}
_WIDTH_IN = 4.6
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "isthmus",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 11,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


def utility(methods: Mapping[str, Mapping[str, Interval]], metric: str, *, label: str, title: str) -> str:
    """Mean and 95 % interval of each method, one below the other; the line is popularity.

    Args:
        methods: method -> metric -> interval.
        metric: which one to draw.
        label: of the axis.
        title: what a screen reader says.
    """
    names = list(methods)
    with rc_context(STYLE):
        figure, axes = _figure(0.75 + 0.3 * len(names))
        for row, name in enumerate(reversed(names)):
            found = methods[name][metric]
            colour = _method_colour(name)
            if math.isfinite(found.low) and math.isfinite(found.high):
                axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round", alpha=0.55)
            hollow = name in ("federated-shuffled", "pooled-ridge")
            if math.isfinite(found.mean):
                axes.plot(
                    found.mean, row, "o", markersize=7, color=colour, markerfacecolor="white" if hollow else colour, markeredgewidth=1.6
                )
        if "popularity" in methods and math.isfinite(methods["popularity"][metric].mean):
            axes.axvline(methods["popularity"][metric].mean, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.set_yticks(range(len(names)), list(reversed(names)))
        for tick, name in zip(axes.get_yticklabels(), reversed(names), strict=True):
            tick.set_fontweight("bold" if name == "federated" else "normal")
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        return inline_svg(figure, title)


def epsilon_spent(rounds: Sequence[int], spent: Mapping[str, Sequence[float]], ceilings: Mapping[str, float], *, title: str) -> str:
    """Epsilon spent after each round, by domain, against the ceilings; domains with the same course share a line."""
    with rc_context(STYLE):
        figure, axes = _figure(3.1)
        for colour, (course, domains) in zip(_cycle(SERIES), _together(spent).items(), strict=False):
            points = [(number, value) for number, value in zip(rounds, course, strict=True) if math.isfinite(value)]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=2, marker="o", markersize=3.5, label=", ".join(domains))
        highest = max((value for value in ceilings.values() if math.isfinite(value)), default=1.0)
        for ceiling, domains in _together({domain: (value,) for domain, value in ceilings.items() if math.isfinite(value)}).items():
            axes.axhline(ceiling[0], color=CEILING, linewidth=1.4, linestyle=(0, (5, 3)))
            name = f"ceiling {ceiling[0]:g}" + ("" if len(domains) == len(ceilings) else f" ({', '.join(domains)})")
            axes.annotate(
                name,
                (1.0, ceiling[0]),
                xycoords=("axes fraction", "data"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="right",
                color=CEILING,
                size=10,
            )
        axes.set_ylim(0, highest * 1.15)
        axes.set_xlim(min(rounds, default=0) - 0.5, max(rounds, default=1) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", color=LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("round")
        axes.set_ylabel("epsilon spent")
        axes.legend(loc="lower right")
        return inline_svg(figure, title)


def bytes_sent(by_kind: Mapping[str, Mapping[str, int]], *, title: str) -> str:
    """What left each client in kilobytes, stacked by kind of message.

    Args:
        by_kind: domain -> kind -> bytes.
        title: what a screen reader says.
    """
    domains = list(by_kind)
    kinds = sorted(
        {kind for found in by_kind.values() for kind in found}, key=lambda k: -sum(found.get(k, 0) for found in by_kind.values())
    )
    with rc_context(STYLE):
        figure, axes = _figure(1.25 + 0.42 * len(domains) + 0.2 * math.ceil(len(kinds) / 2))
        left = [0.0] * len(domains)
        for kind in kinds:
            sizes = [by_kind[domain].get(kind, 0) / 1000 for domain in domains]
            axes.barh(range(len(domains)), sizes, left=left, height=0.58, color=KIND_COLOURS.get(kind, "#555"), label=kind)
            left = [a + b for a, b in zip(left, sizes, strict=True)]
        axes.set_yticks(range(len(domains)), domains)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("kilobytes that left the client")
        figure.legend(loc="outside lower left", ncols=2)
        return inline_svg(figure, title)


def _figure(height_in: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots()


def _method_colour(name: str) -> str:
    return {"federated": ACCENT, "federated-shuffled": ACCENT, "pooled-ridge": CEILING}.get(name, MUTED)


def _cycle(colours: Sequence[str]) -> Any:
    while True:
        yield from colours


def _together(courses: Mapping[str, Sequence[float]]) -> dict[tuple[float, ...], list[str]]:
    """Domains by equal course."""
    found: dict[tuple[float, ...], list[str]] = {}
    for domain, course in courses.items():
        found.setdefault(tuple(round(value, 6) for value in course), []).append(domain)
    return found


def inline_svg(figure: Figure, title: str) -> str:
    """The figure as an `<svg>` that fills its container, named for screen readers; ids differ between figures."""
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}, transparent=True)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    text = text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    prefix = f"g{abs(_checksum(title)):x}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{prefix}", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return re.sub(r"font-family: [^;\"]*", "font-family: inherit", text).strip()


def _checksum(text: str) -> int:
    value = 0
    for character in text:
        value = (value * 131 + ord(character)) % 0xFFFFFF
    return value
