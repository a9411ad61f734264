"""The plot of a report: epsilon spent over time, as inline SVG with real text that can be read on a phone.

Colours are those of Okabe and Ito (2008), told apart by people with any colour vision; lines differ in dashes too, and are named beside.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from .report_words import epsilon_text

SPENT = "#0072B2"
CEILING = "#A34A00"  # Okabe and Ito's vermilion, darker: it is text too, and 4.5:1 on white is asked of text
INFORMATION = "#5b6770"
INK = "#22303a"
LINE = "#d5dbdf"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "isthmus",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 10.5,
}

Point = tuple[int, str, float]
"""(event number, time, epsilon)."""


def epsilon_over_time(
    decides: Sequence[Point],
    information: Sequence[Point],
    ceilings: Sequence[Point],
    refused: Sequence[int],
    *,
    last_event: int,
    steps: bool,
    title: str,
) -> str:
    """Epsilon spent after each event, against the ceiling of genesis and every raise.

    Args:
        decides: course by the accountant that decides; the claim.
        information: course by the other one; may be empty.
        ceilings: where each ceiling was set; the first is the one of genesis.
        refused: events at which a debit was refused.
        last_event: number of the ledger's last event: lines go on to it.
        steps: every debit is a point, so that the line may stand still between them.
        title: what a screen reader says.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.subplots()
        end = max(last_event, 2)
        kind = "steps-post" if steps else "default"
        where, height = _line(decides, end)
        axes.plot(where, height, color=SPENT, linewidth=2.2, drawstyle=kind)
        axes.fill_between(where, height, step="post" if steps else None, color=SPENT, alpha=0.1, linewidth=0)
        if information:
            axes.plot(*_line(information, end), color=INFORMATION, linewidth=1.3, linestyle=(0, (1, 1.6)), drawstyle=kind)
        top = _draw_ceilings(axes, ceilings, end)
        if refused:
            axes.plot(refused, [top * 0.02] * len(refused), "x", color=CEILING, markersize=7, markeredgewidth=1.8, clip_on=False)
        _name_lines(axes, decides, information, end=end, top=top)
        _finish(axes, [*decides, *ceilings], top=top, end=end)
        return svg(figure, title)


def _line(points: Sequence[Point], end: int) -> tuple[list[int], list[float]]:
    """Coordinates of a course, drawn on to the last event."""
    where, height = [event for event, _, _ in points], [value for _, _, value in points]
    return ([*where, end], [*height, height[-1]]) if where[-1] < end else (where, height)


def _draw_ceilings(axes: Any, ceilings: Sequence[Point], end: int) -> float:
    """The ceiling as it stood at each event; the one of genesis goes on as a thin line. Returns the highest."""
    dashes = {"linewidth": 1.6, "linestyle": (0, (5, 2.5)), "color": CEILING}
    for position, (event, _, value) in enumerate(ceilings):
        until = ceilings[position + 1][0] if position + 1 < len(ceilings) else end
        axes.plot([event, until], [value, value], **dashes)
        if position:
            axes.plot([event, event], [ceilings[position - 1][2], value], **dashes)
            text, place, align = f"raised to {value:g}", (end, value), "right"
        else:
            text, place, align = f"genesis ceiling {value:g}", (event, value), "left"
        axes.annotate(text, place, xytext=(0, 4), textcoords="offset points", ha=align, color=CEILING, size=9.5)
    if len(ceilings) > 1:
        first, _, value = ceilings[0]
        axes.plot([first, end], [value, value], color=CEILING, linewidth=0.9, linestyle=(0, (1, 2)))
    return float(max(value for _, _, value in ceilings))


def _name_lines(axes: Any, decides: Sequence[Point], information: Sequence[Point], *, end: int, top: float) -> None:
    """Names at the lines' ends, so that nobody has to match colours with a legend."""
    spent, room = decides[-1][2], 0.14 * top
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
    ends = {"ha": "right", "textcoords": "offset points", "bbox": paper}
    below = top - room < spent <= top and not information
    name = f"spent {epsilon_text(spent)}" + (" (decides)" if information else "")
    axes.annotate(name, (end, spent), xytext=(0, -32 if below else 4), color=SPENT, size=10.5, weight="bold", **ends)
    if information:
        under = information[-1][2]
        axes.annotate(f"PLD {epsilon_text(under)}, information", (end, under), xytext=(0, -15), color=INFORMATION, size=9.5, **ends)


def _finish(axes: Any, points: Sequence[Point], *, top: float, end: int) -> None:
    axes.set_ylim(0, top * 1.16)
    axes.set_xlim(1, end * 1.005)
    places = sorted({max(1, round(1 + (end - 1) * share)) for share in (0, 1 / 3, 2 / 3, 1)})
    known = sorted((event, time) for event, time, _ in points)
    days = {time[:10] for _, time in known}
    labels = []
    for place in places:
        time = next((time for event, time in reversed(known) if event <= place), known[0][1])
        labels.append(f"{place}\n{time[:10] if len(days) > 1 else time[11:19]}")
    axes.set_xticks(places, labels)
    for label, align in ((axes.get_xticklabels()[0], "left"), (axes.get_xticklabels()[-1], "right")):
        label.set_horizontalalignment(align)
    axes.grid(axis="y", color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_ylabel("epsilon spent")
    axes.set_xlabel("event number, and its date" if len(days) > 1 else f"event number, and its time (UTC) on {min(days)}")


def svg(figure: Any, title: str) -> str:
    """A figure as an ``<svg>`` that fills its container and is named for screen readers; ids differ between figures."""
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}, transparent=True)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", text, count=1)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
    text = text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    prefix = f"g{sum(title.encode()) % 0xFFFFFF:x}{len(title):x}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{prefix}", text)
    return re.sub(r"font-family: [^;\"]*", "font-family: inherit", text).strip()
