"""The page of a run's report: one HTML file without scripts, fonts or pictures from elsewhere; readable on a telephone, and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import admission

_COLOURS = ("#0b5f68", "#9a4521", "#3b5ba5", "#7a4b00", "#6b3fa0", "#55616a")
_DASHES = ("", "7 4", "2 3", "9 3 2 3")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 230, 46, 26


def render(report: Mapping[str, Any]) -> str:
    """The page of what `server.report.build` made. Every text in it is escaped."""
    from jinja2 import Environment, StrictUndefined

    from .report_template import PAGE

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = lambda value: "infinite" if value is None else f"{value:.2f}"
    codes = (admission.__doc__ or "").partition("\n\n")[2]
    page = environment.from_string(PAGE)
    return page.render(report=report, run=report["run"], chart=chart(report["rounds"]), codes=codes)


def chart(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Epsilon of each domain by round, as an SVG; empty where there are not two rounds with finite numbers."""
    from html import escape

    domains = sorted({domain for line in rounds for domain, value in line["epsilon"].items() if value is not None})
    points = {
        domain: [(line["round"], line["epsilon"][domain]) for line in rounds if line["epsilon"].get(domain) is not None]
        for domain in domains
    }
    numbers = [line["round"] for line in rounds]
    if len(numbers) < 2 or not domains:
        return ""
    top: float = max(value for each in points.values() for _, value in each) * 1.08 or 1.0
    first, last = int(numbers[0]), int(numbers[-1])

    def x(number: int) -> float:
        return _LEFT + (number - first) / (last - first) * (_WIDTH - _LEFT - 120)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _BOTTOM - 10)

    axis = f'<path d="M{_LEFT} 8V{_HEIGHT - _BOTTOM}H{_WIDTH - 112}" fill="none" stroke="#55616a"/>'
    marks = [f'<text x="{_LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.2g}</text>' for v in (0.0, top / 2, top)]
    marks += [f'<text x="{x(number):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{number}</text>' for number in sorted({first, last})]
    drawn = []
    for at, domain in enumerate(domains):
        path = " ".join(f"{x(number):.1f},{y(value):.1f}" for number, value in points[domain])
        style = f'stroke="{_COLOURS[at % len(_COLOURS)]}" stroke-dasharray="{_DASHES[at % len(_DASHES)]}"'
        drawn.append(f'<polyline points="{path}" fill="none" stroke-width="2.2" {style}/>')
        legend = 18 + 17 * at
        drawn.append(f'<path d="M{_WIDTH - 104} {legend}h22" fill="none" stroke-width="2.2" {style}/>')
        drawn.append(f'<text x="{_WIDTH - 78}" y="{legend + 4}">{escape(domain[:12])}</text>')
    body = "".join([axis, *marks, *drawn])
    label = f"Epsilon by round of {', '.join(domains)}"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}" font-size="11" fill="#22303a">{body}</svg>'
