"""compare.html and compare.md with their pictures: one page that needs no network, and one that any viewer of Markdown shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import tables
from .choices import RULE, sure
from .comparison import Comparison, Pooled
from .comparison_markdown import (
    GAINS,
    MARGIN,
    by_direction,
    choice_words,
    comparison_markdown,
    contrast_cells,
    federation_rows,
    findings,
    gain_rows,
    general_caption,
    shown_contrasts,
    utility_rows,
)
from .curves import Picture, pictures
from .json_files import replace_file
from .ranks import METRICS
from .report import page_environment
from .run_slots import epsilon_name

TEMPLATE = "comparison.html.j2"
PICTURES = "pictures"


def write_pages(comparison: Comparison, folder: Path) -> None:
    """Writes compare.md, compare.html and a folder of pictures.

    Raises:
        StorageError: when something cannot be written.
    """
    drawn = pictures(comparison)
    for picture in drawn:
        picture.write(folder / PICTURES)
    text = comparison_markdown(comparison, [(picture.title, f"{PICTURES}/{picture.name}.svg") for picture in drawn])
    replace_file(folder / "compare.md", lambda file: file.write(text.encode()))
    html = render(comparison, drawn)
    replace_file(folder / "compare.html", lambda file: file.write(html.encode()))


def render(comparison: Comparison, drawn: Sequence[Picture]) -> str:
    """The page as text."""
    return page_environment().get_template(TEMPLATE).render(**_context(comparison, drawn))


def _context(comparison: Comparison, drawn: Sequence[Picture]) -> dict[str, Any]:
    several = len(comparison.variants) > 1
    groups = [("Mean over directions", list(comparison.overall))] if len(by_direction(comparison)) > 1 else []
    sections = [*groups, *by_direction(comparison), *by_direction(comparison, warm=True)]
    shown, gains = gain_rows(comparison)
    return {
        "name": comparison.scenario,
        "stamps": tables.comparison_stamps(comparison),
        "command": comparison.command,
        "caption": general_caption(comparison),
        "margin": MARGIN,
        "rule": RULE if several and comparison.choices else "",
        "n_runs": len(comparison.runs),
        "variants": [comparison.words(variant) for variant in comparison.variants],
        "epsilons": [epsilon_name(epsilon) for epsilon in comparison.epsilons],
        "seeds": len({run.metrics.seed for run in comparison.runs}),
        "findings": findings(comparison),
        "choices": [_choice(comparison, at) for at in range(len(comparison.choices))] if several else [],
        "pictures": [{"title": picture.title, "plot": picture.svg()} for picture in drawn],
        "utility": [_utility(comparison, title, results) for title, results in sections if results],
        "gains": gains,
        "gain_head": ["variant", "epsilon", "direction", *shown],
        "gain_note": GAINS,
        "federation": federation_rows(comparison),
        "contrasts": [contrast_cells(comparison, contrast) for contrast in shown_contrasts(comparison)] if several else [],
        "details": [_details(comparison, result) for result in comparison.results],
        "metric_names": tables.METRIC_NAMES,
    }


def _utility(comparison: Comparison, title: str, results: Sequence[Pooled]) -> dict[str, Any]:
    epsilons = [epsilon_name(epsilon) for epsilon in sorted({r.epsilon for r in results}, reverse=True)]
    rows = [{"name": name.strip("*"), "own": name.startswith("**"), "cells": cells} for name, cells in utility_rows(comparison, results)]
    return {"title": title, "epsilons": epsilons, "rows": rows}


def _choice(comparison: Comparison, at: int) -> dict[str, Any]:
    choice = comparison.choices[at]
    rows = []
    for position, (hits, gain), ahead in zip(choice.positions, choice.figures, choice.ahead, strict=True):
        rows.append(
            {
                "name": comparison.words(comparison.variants[position]),
                "chosen": ahead is None,
                "cells": [tables.bounded("hr@10", hits), tables.bounded("ndcg@10", gain)],
                "ahead": "chosen" if ahead is None else tables.signed_bounds(ahead.interval),
            }
        )
    return {
        "epsilon": epsilon_name(choice.epsilon),
        "rows": rows,
        "sure": sure(choice),
        "words": choice_words(comparison, choice).replace("**", ""),
        "seeds": choice.n_seeds,
    }


def _details(comparison: Comparison, result: Pooled) -> dict[str, Any]:
    private = comparison.private_at(result.epsilon)
    title = ", ".join(filter(None, [result.title, comparison.words(result.variant), f"epsilon {epsilon_name(result.epsilon)}"]))
    return {
        "title": title,
        "n_users": result.n_users,
        "n_seeds": result.n_seeds,
        "caption": tables.caption(epsilon=result.epsilon, delta=comparison.delta, private=private),
        "rows": [
            {
                "method": method,
                "cells": [(tables.metric_number(m, figures[m].mean), tables.interval_text(m, figures[m])) for m in METRICS],
                "guarantee": tables.guarantee(method, epsilon=result.epsilon, private=private),
            }
            for method, figures in result.methods.items()
        ],
        "differences": [
            {
                "what": f"{found.a} minus {found.b}",
                "mean": f"{found.interval.mean:+.3f}",
                "bounds": f"{found.interval.low:+.3f} to {found.interval.high:+.3f}",
                "verdict": tables.verdict(found.beats, found.non_inferior),
            }
            for found in result.differences.get("hr@10", ())
        ],
    }
