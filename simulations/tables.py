"""Tables of a run and of a comparison: for a terminal (Rich) and for Markdown, with the caption that every table needs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from .bootstrap import Interval
from .comparison import ADJACENCY, UNIT, Comparison, Pooled
from .metrics import DomainPrivacy, Metrics
from .ranks import METRICS

METRIC_NAMES = {
    "hr@10": "HR@10",
    "ndcg@10": "nDCG@10",
    "recall@10": "recall@10",
    "mrr": "MRR",
    "coverage@10": "coverage",
    "novelty@10": "novelty",
}
_EXACT = ("popularity", "linked-popularity", "text-popularity", "head-only", "neighbours", "item-knn", "ease", "ease-text", "recommender")
_TRAINED = ("target-only", "federated", "federated-shuffled")
AGREEMENT = 0.02
AGREEMENT_SHARE = 0.01


def guarantee(method: str, *, epsilon: float, private: bool) -> str:
    """What protects the users behind a row.

    >>> guarantee("federated", epsilon=8.0, private=True), guarantee("pooled-ridge", epsilon=8.0, private=True)
    ('epsilon 8', 'NOT PRIVATE')
    """
    if method == "text":
        return "learns nothing"
    if method in _EXACT:
        return "exact, stays at home"
    if method in _TRAINED and private:
        return f"epsilon {epsilon:g}"
    return "NOT PRIVATE"


def stamps(*, synthetic: bool, private: bool) -> list[str]:
    """Those that apply to results of a simulated run.

    BENCHMARK: the catalogue comes from the interactions (never so with synthetic domains). NOT FOR RELEASE: metrics are exact. NOT PRIVATE:
    a test build, or no budget at all.

    >>> stamps(synthetic=True, private=False)
    ['NOT FOR RELEASE', 'NOT PRIVATE']
    """
    return [*([] if synthetic else ["BENCHMARK"]), "NOT FOR RELEASE", *([] if private else ["NOT PRIVATE"])]


def caption(*, epsilon: float, delta: float, private: bool, noise: str = "system") -> str:
    """Epsilon of one run, delta, unit and adjacency; what was not debited."""
    if not private:
        why = "no noise and no clipping" if math.isinf(epsilon) else f"a test build with {'no' if noise == 'none' else noise} noise"
        return f"NOT PRIVATE: {why}. Exact metrics on public benchmark data."
    return (
        f"epsilon {epsilon:g} of one run, delta {delta:g}, unit: {UNIT}, adjacency: {ADJACENCY}; selection and metrics on public benchmark "
        "data, not debited. Rows without training share nothing; popularity and the head are exact and stay at home; pooled-ridge is "
        "NOT PRIVATE."
    )


def number(value: float, digits: int = 3) -> str:
    """A figure without its leading zero; a dash where there is none.

    >>> number(0.1514), number(1.0), number(float("nan"))
    ('.151', '1.000', '-')
    """
    if not math.isfinite(value):
        return "-"
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text.replace("-0.", "-.")


def metric_number(metric: str, value: float) -> str:
    return number(value, 2 if metric.startswith("novelty") else 3)


def interval_text(metric: str, interval: Interval) -> str:
    """``.140-.162``; empty where there is no interval."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    return f"{metric_number(metric, interval.low)}-{metric_number(metric, interval.high)}"


def epsilon_text(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "∞" if value == math.inf else "-"


def accountants(privacy: DomainPrivacy) -> str:
    """Whether the accountants agree: |PRV - PLD| at most .02 or 1 %, PLD at most RDP; else NOT VERIFIED."""
    if not all(math.isfinite(value) for value in (privacy.pld, privacy.prv, privacy.rdp)):
        return "NOT VERIFIED"
    apart = abs(privacy.prv - privacy.pld)
    return "agree" if apart <= max(AGREEMENT, AGREEMENT_SHARE * privacy.pld) and privacy.pld <= privacy.rdp else "NOT VERIFIED"


def method_table(title: str, methods: Mapping[str, Mapping[str, Interval]], *, n_users: int) -> Table:
    """One direction for the terminal: mean above, 95 % interval below; the best private row of HR@10 is not marked, read the verdicts."""
    table = Table(title=f"{title}  ({n_users:,} users)", title_justify="left", title_style="bold", padding=(0, 1, 0, 0), box=None)
    table.add_column("method", no_wrap=True)
    for metric in METRICS:
        table.add_column(METRIC_NAMES[metric], justify="right", no_wrap=True)
    for method, figures in methods.items():
        style = "bold" if method == "federated" else "dim" if method == "pooled-ridge" else ""
        cells = []
        for metric in METRICS:
            interval = figures[metric]
            cells.append(Text(metric_number(metric, interval.mean), style=style))
            cells[-1].append(f"\n{interval_text(metric, interval)}", style="dim not bold")
        table.add_row(Text(method, style=style), *cells)
    return table


def difference_table(result: Pooled) -> Table:
    """Differences of HR@10 with their verdicts."""
    table = Table(title=f"{result.title}: federated minus ...", title_justify="left", title_style="bold", padding=(0, 1, 0, 0), box=None)
    for column in ("HR@10 against", "difference", "95 % interval", "verdict"):
        table.add_column(column, justify="left" if column in ("HR@10 against", "verdict") else "right", no_wrap=True)
    for difference in result.differences.get("hr@10", ()):
        found = difference.interval
        table.add_row(
            difference.b, f"{found.mean:+.3f}", f"{found.low:+.3f} to {found.high:+.3f}", verdict(difference.beats, difference.non_inferior)
        )
    return table


def verdict(beats: bool, non_inferior: bool) -> str:
    return "beats" if beats else "non-inferior" if non_inferior else "does not beat"


def privacy_table(privacy: Mapping[str, DomainPrivacy]) -> Table:
    """What each domain's ledger adds up to."""
    table = Table(title="Privacy, by domain", title_justify="left", title_style="bold", padding=(0, 2, 0, 0), box=None)
    for column in ("domain", "epsilon", "ceiling", "delta", "PLD", "PRV", "RDP", "accountants", "events"):
        table.add_column(column, justify="left" if column in ("domain", "accountants") else "right", no_wrap=True)
    for domain, spent in privacy.items():
        values = [epsilon_text(v) for v in (spent.epsilon, spent.ceiling)]
        accounted = [epsilon_text(v) for v in (spent.pld, spent.prv, spent.rdp)]
        table.add_row(domain, *values, f"{spent.delta:g}", *accounted, accountants(spent), str(spent.events))
    return table


def run_markdown(metrics: Metrics, *, synthetic: bool) -> str:
    """Every table of one run as Markdown."""
    parts = [_stamp_line(synthetic, metrics.private)]
    for direction in metrics.directions:
        title = f"{direction.source} → {direction.target} ({direction.n_users:,} cold users)"
        parts.append(markdown_table(title, direction.methods, epsilon=metrics.epsilon_target, private=metrics.private))
    parts.append(f"*{metrics_caption(metrics)}*")
    return "\n\n".join(parts) + "\n"


def metrics_caption(metrics: Metrics) -> str:
    delta = max((spent.delta for spent in metrics.privacy.values()), default=math.nan)
    return caption(epsilon=metrics.epsilon_target, delta=delta, private=metrics.private, noise=metrics.noise)


def markdown_table(title: str, methods: Mapping[str, Mapping[str, Interval]], *, epsilon: float, private: bool) -> str:
    """One direction as a Markdown table with intervals and, for each row, what protects its users."""
    lines = [f"**{title}**", ""] if title else []
    lines.append("| method | " + " | ".join(METRIC_NAMES[metric] for metric in METRICS) + " | guarantee |")
    lines.append("|---" + "|---:" * len(METRICS) + "|---|")
    for method, figures in methods.items():
        cells = [bounded(m, figures[m]) for m in METRICS]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {guarantee(method, epsilon=epsilon, private=private)} |")
    return "\n".join(lines)


def bounded(metric: str, interval: Interval) -> str:
    """``.151 [.140-.162]``."""
    return f"{metric_number(metric, interval.mean)} [{interval_text(metric, interval)}]".replace(" []", "")


def signed_bounds(interval: Interval) -> str:
    """``+.031 [+.010 to +.052]`` of a difference."""
    return f"{interval.mean:+.3f} [{interval.low:+.3f} to {interval.high:+.3f}]".replace(" [+nan to +nan]", "").replace(" [nan to nan]", "")


def comparison_stamps(comparison: Comparison) -> list[str]:
    return stamps(synthetic=comparison.synthetic, private=comparison.private)


def _stamp_line(synthetic: bool, private: bool) -> str:
    return "**" + " · ".join(stamps(synthetic=synthetic, private=private)) + "**"
