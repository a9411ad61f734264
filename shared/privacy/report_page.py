"""The page of a report, drawn from its JSON record alone: no file is opened but the templates, and everything is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import report_plots as plots
from . import report_words as words
from .report_about import FIELDS
from .report_status import ReportStatus

TEMPLATE = "report.html.j2"
_TONE = {ReportStatus.WITHIN: "good", ReportStatus.RAISED: "raised", ReportStatus.EXCEEDED: "bad", ReportStatus.NOT_VERIFIED: "bad"}
_SIGN = {ReportStatus.WITHIN: "✓", ReportStatus.RAISED: "△", ReportStatus.EXCEEDED: "✕", ReportStatus.NOT_VERIFIED: "?"}
MOST_RUNS = 40
MOST_TESTS = 12


def page(report: Mapping[str, Any]) -> str:
    """The page as text; plots are made here and inlined."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "epsilon": words.epsilon_text,
        "exact": _exact,
        "count": lambda value: f"{value:,}",
        "bytes": _bytes,
        "delta": lambda value: "-" if value is None else words.delta_text(value),
        "tested": _tested,
        "date": lambda value: value[:10] if value else words.NOT_STATED,
        "moment": lambda value: f"{value[:10]} {value[11:19]}" if value else words.NOT_STATED,
        "stated": lambda value: value or words.NOT_STATED,
        "g": _short,
        "factor": lambda value: words.odds_factor_text(float(words.epsilon_text(value))),
        "tone": lambda status: _TONE[ReportStatus(status)],
        "sign": lambda status: _SIGN[ReportStatus(status)],
        "label": lambda name: name.replace("_", " "),
    }
    template = environment.get_template(TEMPLATE)
    domains = report["domains"]
    return template.render(
        report=report,
        names=", ".join(one["domain"] or "unreadable ledger" for one in domains),
        ids=_ids([one["domain"] for one in domains]),
        plots=[_plot(one) for one in domains],
        blocking=[one for one in report["reasons"] if one["leads_to"]],
        remarks=[one for one in report["reasons"] if not one["leads_to"]],
        many=len(domains) > 1,
        questions={name: what for name, (_, what) in FIELDS.items()},
        most_runs=MOST_RUNS,
        most_tests=MOST_TESTS,
    )


def _tested(domain: Mapping[str, Any]) -> str:
    """Since when all code that trained has passed tiers 1 and 2, in a word or two."""
    if not domain["holds"]:
        return "not known"
    tests = [test for one in domain["code"]["trained"] for test in one["tests"].values()]
    if not tests:
        return "nothing trained"
    if any(test is None for test in tests):
        return "not tested"
    return "refuted" if any(test["verdict"] != "passed" for test in tests) else f"passed {min(test['time_utc'] for test in tests)[:10]}"


def _plot(domain: Mapping[str, Any]) -> Markup | None:
    course, said = domain["course"], domain["guarantee"]
    ceilings = [(one["event"], one["time_utc"], one["epsilon"]) for one in said["ceilings"] if one["epsilon"] is not None]
    if not course["decides"] or not ceilings:
        return None
    spent, raises = words.epsilon_text(said["epsilon_spent"]), [f"raised to {value:g} at event {event}" for event, _, value in ceilings[1:]]
    title = f"Epsilon spent in {domain['domain']} over its events: {spent} of {said['ceiling']:g}; genesis ceiling {ceilings[0][2]:g}"
    return Markup(  # made by us from numbers; the title is escaped where it is put in
        plots.epsilon_over_time(
            _points(course["decides"]),
            _points(course["information"]),
            ceilings,
            course["refused"],
            last_event=domain["ledger"]["events"],
            steps=course["complete"],
            title="; ".join([title, *raises]),
        )
    )


def _points(course: Sequence[Mapping[str, Any]]) -> list[plots.Point]:
    return [(one["event"], one["time_utc"], one["epsilon"]) for one in course]


def _ids(names: Sequence[str]) -> list[str]:
    """An anchor for each domain: letters and digits only, all different."""
    return [f"domain-{position}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-') or 'x'}" for position, name in enumerate(names, 1)]


def _exact(value: float | None) -> str:
    return "no answer" if value is None else f"{value:.4f}"


def _short(value: Any) -> str:
    """A number in at most six digits; a text as it is; nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _bytes(count: float) -> str:
    """``812 B``, ``9.0 kB``, ``1.2 MB``."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:.0f} B"
