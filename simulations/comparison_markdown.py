"""compare.md: what a comparison found, for people; captions say what protects whom, and what was not debited."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .choices import RULE, Choice, sure
from .comparison import Comparison, Pooled
from .findings import Finding, finding
from .paired_rows import Contrast
from .run_slots import epsilon_name
from .tables import bounded, caption, comparison_stamps, markdown_table, signed_bounds, verdict

TRAINED = ("federated", "recommender", "federated-shuffled", "target-only")
"""Rows that differ from variant to variant; all others are controls, shown once."""


def comparison_markdown(comparison: Comparison, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The whole page.

    Args:
        pictures: (title, path relative to the page) of each curve.
    """
    several = len(comparison.variants) > 1
    parts = [f"# {comparison.scenario}: {len(comparison.runs)} runs", f"**{' · '.join(comparison_stamps(comparison))}**"]
    if comparison.command:
        parts.append("Made by\n\n```sh\n" + comparison.command + "\n```")
    parts += [f"*{general_caption(comparison)}*"]
    parts += ["\n".join(f"- **{found.title}** ({found.verdict}): {' '.join(found.sentences)}" for found in findings(comparison))]
    if several and comparison.choices:
        parts += ["## Chosen on validation people", RULE, choice_table(comparison)]
    if comparison.overall and len({(r.source, r.target) for r in comparison.results if r.source}) > 1:
        parts += ["## Mean over directions, cold people", utility_table(comparison, comparison.overall)]
    if pictures:
        parts += ["## Privacy and utility", *(f"![{title}]({path})" for title, path in pictures)]
    for title, results in by_direction(comparison):
        parts += [f"## {title}, cold people", utility_table(comparison, results)]
    for title, results in by_direction(comparison, warm=True):
        parts += [f"## {title}", utility_table(comparison, results)]
    shown, rows = gain_rows(comparison)
    if rows:
        parts += ["## Gains by direction", _table(["variant", "epsilon", "direction", *shown], rows), f"*{GAINS}*"]
    alone = federation_table(comparison)
    if alone:
        parts += ["## Federated minus target-only", alone, f"*{MARGIN}*"]
    if several and comparison.contrasts:
        parts += ["## Between variants, cold people", contrast_table(comparison)]
    parts += (
        ["Every figure of every variant is in compare.html and compare.json."] if several else ["## All figures", *_details(comparison)]
    )
    return "\n\n".join(part for part in parts if part) + "\n"


MARGIN = (
    "HR@10, paired over persons and seeds. Beats: the 95 % interval lies above 0. Non-inferior: it lies above -.005. The mean over "
    "directions counts every direction the same; persons are drawn with all their rows."
)


def general_caption(comparison: Comparison) -> str:
    """What holds for every table: guarantee, delta, unit, adjacency, what was not debited."""
    if not any(run.metrics.private for run in comparison.runs):
        return caption(epsilon=math.inf, delta=comparison.delta, private=False)
    texts = caption(epsilon=1.0, delta=comparison.delta, private=True).replace("epsilon 1 of one run", "Each epsilon is that of one run")
    none = " Epsilon none is NOT PRIVATE: no noise and no clipping." if math.inf in comparison.epsilons else ""
    return (
        f"{texts}{none} Means over seeds, 95 % intervals over persons. Each run opens ledgers of its own: what a partner would pay for "
        f"several runs adds up."
    )


def findings(comparison: Comparison) -> list[Finding]:
    """Words for the mean over directions and for each direction; with several variants the former only, of the chosen one."""
    chosen = {choice.epsilon: comparison.variants[choice.positions[choice.chosen]] for choice in comparison.choices}
    several = len(comparison.variants) > 1
    found = []
    for result in (*comparison.overall, *(() if several else (r for r in comparison.results if r.source))):
        if several and result.variant != chosen.get(result.epsilon):
            continue
        said = finding(result)
        if said is not None:
            name = ", ".join(filter(None, [result.title, comparison.words(result.variant), f"epsilon {epsilon_name(result.epsilon)}"]))
            found.append(Finding(title=name, verdict=said.verdict, sentences=said.sentences))
    return found


def choice_table(comparison: Comparison) -> str:
    """At each epsilon: who is chosen, by how much, and whether that is more than chance."""
    lines = [
        "| epsilon | variant | HR@10, validation | nDCG@10, validation | chosen minus this one | seeds |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for choice in comparison.choices:
        for at, (hits, gain) in enumerate(choice.figures):
            name = comparison.words(comparison.variants[choice.positions[at]])
            ahead = choice.ahead[at]
            cells = [
                epsilon_name(choice.epsilon),
                f"**{name}** (chosen)" if at == choice.chosen else name,
                bounded("hr@10", hits),
                bounded("ndcg@10", gain),
                "" if ahead is None else signed_bounds(ahead.interval),
                str(choice.n_seeds),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {choice_words(comparison, choice)}" for choice in comparison.choices)])


def choice_words(comparison: Comparison, choice: Choice) -> str:
    """One sentence: the choice, and what cold people say of it."""
    name = comparison.words(comparison.variants[choice.positions[choice.chosen]])
    certain = "ahead of all others by more than chance" if sure(choice) else "not ahead of all others by more than chance"
    against = [c for c in shown_contrasts(comparison) if c.epsilon == choice.epsilon and c.target is None]
    cold = [f"{signed_bounds(c.difference.interval)} against {comparison.words(comparison.variants[int(c.difference.b)])}" for c in against]
    reported = f"; on cold people {', '.join(cold)}" if cold else ""
    return f"epsilon {epsilon_name(choice.epsilon)}: **{name}**, {certain} on {choice.n_users:,} validation rows{reported}."


def by_direction(comparison: Comparison, *, warm: bool = False) -> list[tuple[str, list[Pooled]]]:
    """(title, results) of each direction, or of each domain's warm users."""
    found: dict[str, list[Pooled]] = {}
    for result in comparison.results:
        if (result.source is None) == warm:
            found.setdefault(result.title, []).append(result)
    return list(found.items())


def utility_table(comparison: Comparison, results: Sequence[Pooled]) -> str:
    """HR@10 by variant and epsilon, controls below; one seed set for each column is not promised, so rows say how many seeds."""
    rows = utility_rows(comparison, results)
    epsilons = sorted({r.epsilon for r in results}, reverse=True)
    lines = ["| HR@10 | " + " | ".join(f"epsilon {epsilon_name(e)}" for e in epsilons) + " |", "|---" + "|---:" * len(epsilons) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]
    return "\n".join(lines)


def utility_rows(comparison: Comparison, results: Sequence[Pooled]) -> list[tuple[str, list[str]]]:
    """(name, a cell for each epsilon from none to small): each variant's federated, target-only and shuffled rows, then the controls."""
    epsilons = sorted({r.epsilon for r in results}, reverse=True)
    at = {(r.variant, r.epsilon): r for r in results}
    rows = []
    for variant in comparison.variants:
        of: list[Pooled | None] = [at.get((variant, epsilon)) for epsilon in epsilons]
        name = comparison.words(variant)
        for method in TRAINED:
            if any(r is not None and method in r.methods for r in of):
                cells = ["" if r is None or method not in r.methods else f"{bounded('hr@10', r.methods[method]['hr@10'])}" for r in of]
                title = f"{name}: {method}" if name else method
                rows.append((f"**{title}**" if method in ("federated", "recommender") else title, cells))
    fullest = {epsilon: max((r for r in results if r.epsilon == epsilon), key=lambda r: r.n_users) for epsilon in epsilons}
    for method in dict.fromkeys(method for r in fullest.values() for method in r.methods):
        if method not in TRAINED:
            rows.append((method, [bounded("hr@10", r.methods[method]["hr@10"]) if method in r.methods else "" for r in fullest.values()]))
    users = [f"{fullest[epsilon].n_users:,} / {fullest[epsilon].n_seeds}" for epsilon in epsilons]
    return [*rows, ("rows / seeds", users)]


GAINS = (
    "HR@10 of cold people, paired, with 95 % intervals; a star where the interval lies above 0. A gain is personal only above the shuffled "
    "row; the gate holds where what is served is not below popularity."
)
_GAINS = (
    ("federated", "popularity"),
    ("federated", "federated-shuffled"),
    ("federated", "head-only"),
    ("recommender", "popularity"),
    ("recommender", "neighbours"),
)


def gain_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what a variant brings at an epsilon in each direction, above popularity, shuffled users and the head alone."""
    results = [*comparison.overall, *(r for r in comparison.results if r.source)]
    pairs = [pair for pair in _GAINS if any(r.difference(*pair) is not None for r in results)]
    rows = []
    for result in results:
        cells = []
        for pair in pairs:
            found = result.difference(*pair)
            cells.append("" if found is None else signed_bounds(found.interval) + (" ★" if found.beats else ""))
        rows.append([comparison.words(result.variant) or "federated", epsilon_name(result.epsilon), result.title, *cells])
    return [f"{a} minus {b}" for a, b in pairs], rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(cells)} |" for cells in rows)])


def federation_table(comparison: Comparison) -> str:
    """Whether training together pays: federated minus target-only, in each direction and in the mean over directions."""
    rows = federation_rows(comparison)
    return _table(["variant", "epsilon", "direction", "mean", "95 % interval", "verdict"], rows) if rows else ""


def federation_rows(comparison: Comparison) -> list[list[str]]:
    found = []
    for result in (*comparison.overall, *(r for r in comparison.results if r.source)):
        difference = result.difference("federated", "target-only")
        if difference is not None:
            interval = difference.interval
            cells = [comparison.words(result.variant) or "federated", epsilon_name(result.epsilon), result.title, f"{interval.mean:+.3f}"]
            found.append([*cells, f"{interval.low:+.3f} to {interval.high:+.3f}", verdict(difference.beats, difference.non_inferior)])
    return found


def contrast_table(comparison: Comparison) -> str:
    """The chosen variant against every other one on cold people, HR@10; all pairs are in compare.json."""
    head = ["epsilon", "direction", "difference", "mean", "95 % interval", "verdict", "rows / seeds"]
    return _table(head, [contrast_cells(comparison, contrast) for contrast in shown_contrasts(comparison)])


def shown_contrasts(comparison: Comparison) -> list[Contrast]:
    """HR@10 of the chosen variant (the first one where nothing is chosen) minus each other; the mean over directions comes first."""
    chosen = {choice.epsilon: choice.positions[choice.chosen] for choice in comparison.choices}
    found = []
    for contrast in comparison.contrasts:
        winner = str(chosen.get(contrast.epsilon, 0))
        if contrast.metric == "hr@10" and winner in (contrast.difference.a, contrast.difference.b):
            found.append(contrast if contrast.difference.a == winner else contrast.flipped())
    return sorted(found, key=lambda c: (-c.epsilon, c.target is not None, c.source or "", c.target or ""))


def contrast_cells(comparison: Comparison, contrast: Contrast) -> list[str]:
    def name(position: str) -> str:
        return comparison.words(comparison.variants[int(position)])

    found = contrast.difference
    return [
        epsilon_name(contrast.epsilon),
        f"{contrast.source} → {contrast.target}" if contrast.target else "mean over directions",
        f"{name(found.a)} minus {name(found.b)}",
        f"{found.interval.mean:+.3f}",
        f"{found.interval.low:+.3f} to {found.interval.high:+.3f}",
        verdict(found.beats, found.non_inferior),
        f"{found.n_users:,} / {contrast.n_seeds}",
    ]


def _details(comparison: Comparison) -> list[str]:
    parts = []
    for result in comparison.results:
        private = comparison.private_at(result.epsilon)
        name = ", ".join(filter(None, [result.title, comparison.words(result.variant), f"epsilon {epsilon_name(result.epsilon)}"]))
        parts.append(f"### {name} ({result.n_users:,} users, {result.n_seeds} seeds)")
        parts.append(markdown_table("", result.methods, epsilon=result.epsilon, private=private))
        parts.append(f"*{caption(epsilon=result.epsilon, delta=comparison.delta, private=private)}*")
        if result.differences.get("hr@10"):
            parts.append(difference_markdown(result))
    return parts


def difference_markdown(result: Pooled) -> str:
    lines = ["| HR@10 | mean | 95 % interval | verdict |", "|---|---:|---:|---|"]
    for difference in result.differences["hr@10"]:
        found = difference.interval
        bounds = f"{found.low:+.3f} to {found.high:+.3f}"
        what = f"{difference.a} minus {difference.b}"
        lines.append(f"| {what} | {found.mean:+.3f} | {bounds} | {verdict(difference.beats, difference.non_inferior)} |")
    return "\n".join(lines)
