"""report.html: what a run brought and what it cost, on one page that needs no network."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shared.config import RunConfig
from shared.errors import RunFolderError

from . import plots, tables
from .comparison import FinishedRun, Pooled, pool
from .findings import Finding, finding
from .json_files import replace_file
from .metrics import Direction, Metrics
from .ranks import METRICS, read_ranks
from .run_folder import RunFolder

TEMPLATE = Path(__file__).with_name("report.html.j2")

_NEEDED = ("config.toml", "metrics.json", "rounds.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A line of rounds.jsonl, as far as the report needs it."""

    number: int
    seconds: float
    replies: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    epsilon: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SentKind:
    """Messages of one kind that left one client."""

    domain: str
    kind: str
    count: int
    bytes: int
    stopped: int
    why: str


def write_report(folder: RunFolder | Path) -> Path:
    """Writes report.html into a run folder.

    Raises:
        RunFolderError: naming the files that are missing; ranks and egress manifests may be, the page then says so.
        StorageError: when the page cannot be written.
    """
    opened = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    html = render(opened)
    replace_file(opened.report, lambda file: file.write(html.encode()))
    return opened.report


def render(folder: RunFolder) -> str:
    """The page as text."""
    if not folder.path.is_dir():
        raise RunFolderError(f"{folder.path} is not a folder", do="Name the folder that a run printed.")
    missing = [name for name in _NEEDED if not (folder.path / name).is_file()]
    if missing:
        raise RunFolderError(
            f"{folder.path} cannot be reported: {', '.join(missing)} missing",
            do="Finish the run first: isthmus-simulate run --resume FOLDER.",
        )
    run, config = FinishedRun.read(folder.path), folder.config
    rounds, sent = read_rounds(folder.rounds), read_sent(folder, run.metrics)
    results = _pooled(folder, run.metrics)
    environment = page_environment()
    environment.filters |= {"bytes": _bytes, "seconds": _seconds, "epsilon": tables.epsilon_text, "g": lambda v: f"{v:g}"}
    return environment.get_template(TEMPLATE.name).render(**_context(run, config, rounds, sent, results))


def page_environment() -> Environment:
    """Templates that lie beside this file; all that is put into them is escaped, but for drawings."""
    loader = FileSystemLoader(TEMPLATE.parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = Markup
    return environment


def read_rounds(path: Path) -> list[Round]:
    """Lines of rounds.jsonl in order; a line that a crash cut short is passed over."""
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            epsilon = {str(domain): math.inf if value is None else float(value) for domain, value in line["epsilon"].items()}
            refused = tuple((str(r["domain"]), str(r["code"])) for r in line["refused"])
            found.append(
                Round(
                    number=int(line["round"]),
                    seconds=float(line["seconds"]),
                    replies=tuple(line["replies"]),
                    refused=refused,
                    epsilon=epsilon,
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def read_sent(folder: RunFolder, metrics: Metrics) -> list[SentKind]:
    """What the egress manifests say, by domain and kind of message; empty where there are no manifests."""
    from shared.privacy.manifest import read_manifest

    found = []
    for domain in metrics.privacy:
        lines = [line for path in sorted(folder.client(domain).rglob("egress.jsonl")) for line in read_manifest(path).lines]
        kinds: dict[str, list[Any]] = defaultdict(list)
        for line in lines:
            kinds[line.kind].append(line)
        for kind, of_kind in kinds.items():
            left = [line for line in of_kind if line.event == "left"]
            size = sum(line.bytes or 0 for line in left)
            why = "; ".join(sorted({line.why for line in left}))
            found.append(SentKind(domain=domain, kind=kind, count=len(left), bytes=size, stopped=len(of_kind) - len(left), why=why))
    return found


def _pooled(folder: RunFolder, metrics: Metrics) -> dict[tuple[str, str], Pooled]:
    """Paired differences of this run alone, where its ranks are at hand."""
    generator, found = np.random.default_rng(metrics.seed), {}
    for one in metrics.directions:
        path = folder.ranks / f"{one.source}-{one.target}.npz"
        if path.is_file():
            key = (one.source, one.target)
            found[key] = pool([read_ranks(path)], epsilon=metrics.epsilon_target, source=one.source, target=one.target, generator=generator)
    return found


def _context(
    run: FinishedRun, config: RunConfig, rounds: Sequence[Round], sent: Sequence[SentKind], results: Mapping[tuple[str, str], Pooled]
) -> dict[str, Any]:
    metrics = run.metrics
    findings = [found for found in (finding(result) for result in results.values()) if found is not None]
    return {
        "run": run,
        "metrics": metrics,
        "config": config,
        "stamps": tables.stamps(synthetic=run.synthetic, private=metrics.private),
        "caption": tables.metrics_caption(metrics),
        "summary": _summary(findings, metrics),
        "findings": findings,
        "directions": [_direction(one, results.get((one.source, one.target)), metrics) for one in metrics.directions],
        "warm": [_warm(domain, metrics) for domain in metrics.warm],
        "metric_names": tables.METRIC_NAMES,
        "epsilon_plot": _epsilon_plot(rounds, metrics),
        "rounds": rounds,
        "refused": [(one.number, domain, code) for one in rounds for domain, code in one.refused],
        "accountants": {domain: tables.accountants(spent) for domain, spent in metrics.privacy.items()},
        "sent": sent,
        "sent_plot": _sent_plot(sent),
        "config_text": config.to_toml(),
        "infinite": math.isinf(metrics.epsilon_target),
    }


def _direction(one: Direction, result: Pooled | None, metrics: Metrics) -> dict[str, Any]:
    title = f"{one.source} → {one.target}"
    return {
        "title": title,
        "n_users": one.n_users,
        "plot": plots.utility(one.methods, "hr@10", label="HR@10", title=f"HR@10 with 95 % intervals, {title}: {_spoken(one)}"),
        "rows": _rows(one.methods, metrics),
        "differences": [
            {
                "against": found.b,
                "mean": f"{found.interval.mean:+.3f}",
                "bounds": f"{found.interval.low:+.3f} to {found.interval.high:+.3f}",
                "verdict": tables.verdict(found.beats, found.non_inferior),
            }
            for found in (result.differences["hr@10"] if result else ())
        ],
    }


def _warm(domain: str, metrics: Metrics) -> dict[str, Any]:
    found = metrics.warm[domain]
    return {"title": domain, "n_users": found.n_users, "rows": _rows(found.methods, metrics)}


def _rows(methods: Mapping[str, Any], metrics: Metrics) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "cells": [(tables.metric_number(m, figures[m].mean), tables.interval_text(m, figures[m])) for m in METRICS],
            "guarantee": tables.guarantee(method, epsilon=metrics.epsilon_target, private=metrics.private),
        }
        for method, figures in methods.items()
    ]


def _spoken(one: Direction) -> str:
    return ", ".join(f"{method} {figures['hr@10'].mean:.3f}" for method, figures in one.methods.items())


def _summary(findings: Sequence[Finding], metrics: Metrics) -> str:
    """One sentence before the details."""
    if not findings:
        return "Nothing can be said about what the federation brought: there are no ranks of held-out items in this folder."
    count = {verdict: sum(found.verdict == verdict for found in findings) for verdict in ("personal gain", "gain", "no gain", "loss")}
    gains = count["personal gain"] + count["gain"]
    of = f"{len(findings)} directions"
    price = f"at epsilon {metrics.epsilon_target:g} per domain" if metrics.private else "without privacy"
    if not gains:
        lost = f" In {count['loss']} it did worse than popularity." if count["loss"] else ""
        return f"The federation brought nothing over popularity in any of {of}, {price}.{lost}"
    everywhere = "in the only direction" if gains == 1 else "in both directions" if gains == 2 else f"in all {of}"
    where = everywhere if gains == len(findings) else f"in {gains} of {of}"
    own = count["personal gain"]
    personal = "The gain is personal." if own == gains else f"It is personal in {own} of them." if own else "It is not personal."
    lost = f" In {count['loss']} it did worse than popularity." if count["loss"] else ""
    return f"The federation beat popularity {where}, {price}. {personal}{lost}"


def _epsilon_plot(rounds: Sequence[Round], metrics: Metrics) -> str | None:
    """None where nothing was debited, or nothing finite."""
    if not rounds or not metrics.private:
        return None
    spent = {domain: [one.epsilon.get(domain, math.nan) for one in rounds] for domain in metrics.privacy}
    ceilings = {domain: found.ceiling for domain, found in metrics.privacy.items()}
    last = ", ".join(f"{domain} {found.epsilon:.2f} of {found.ceiling:g}" for domain, found in metrics.privacy.items())
    return plots.epsilon_spent([one.number for one in rounds], spent, ceilings, title=f"Epsilon spent by round and domain: {last}")


def _sent_plot(sent: Sequence[SentKind]) -> str | None:
    if not sent:
        return None
    by_kind: dict[str, dict[str, int]] = defaultdict(dict)
    for one in sent:
        by_kind[one.domain][one.kind] = one.bytes
    total = ", ".join(f"{domain} {_bytes(sum(kinds.values()))}" for domain, kinds in by_kind.items())
    return plots.bytes_sent(by_kind, title=f"Bytes that left each client, by kind of message: {total}")


def _bytes(count: float) -> str:
    """``812 B``, ``9.0 kB``, ``1.2 MB``."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:.0f} B"


def _seconds(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"
