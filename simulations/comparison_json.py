"""compare.json, schema 2: everything a comparison found, for machines. Schema 1 had no variants, no validation people and no contrasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .bootstrap import Difference
from .choices import RULE, Choice, sure
from .comparison import ADJACENCY, UNIT, Comparison, FinishedRun, Pooled
from .json_files import json_number, plain
from .paired_rows import Contrast
from .variants import Variant

SCHEMA = 2


def record(comparison: Comparison) -> dict[str, Any]:
    """Plain values; what is not finite is ``None``. Variants are named by their position in ``variants``."""
    variants = comparison.variants
    return {
        "schema": SCHEMA,
        "scenario": comparison.scenario,
        "command": comparison.command,
        "delta": json_number(comparison.delta),
        "unit": UNIT,
        "adjacency": ADJACENCY,
        "private": comparison.private,
        "variants": [{"name": comparison.words(variant), "settings": dict(variant.settings)} for variant in variants],
        "runs": [_run_record(run, variants) for run in comparison.runs],
        "directions": [{"source": r.source, **_result_record(r, variants)} for r in comparison.results if r.source],
        "warm": [_result_record(r, variants) for r in comparison.results if not r.source],
        "mean_over_directions": [_result_record(r, variants) for r in comparison.overall],
        "validation": [_result_record(r, variants) for r in comparison.validation],
        "differences": [
            {**_place(result, variants), "metric": metric, **difference.to_json()}
            for result in (*comparison.results, *comparison.overall)
            for metric, found in result.differences.items()
            for difference in found
        ],
        "contrasts": [_contrast_record(found) for found in comparison.contrasts],
        "choice_rule": RULE,
        "choices": [_choice_record(found) for found in comparison.choices],
    }


def _run_record(run: FinishedRun, variants: Sequence[Variant]) -> dict[str, Any]:
    values = run.metrics
    return {
        "folder": run.folder.name,
        "variant": variants.index(run.variant),
        "seed": values.seed,
        "split_seed": values.split_seed,
        "epsilon_target": json_number(values.epsilon_target),
        "noise": values.noise,
        "private": values.private,
        "config_hash": values.config_hash,
        "epsilon": {domain: json_number(spent.epsilon) for domain, spent in values.privacy.items()},
        "seconds": plain(values.seconds),
    }


def _place(result: Pooled, variants: Sequence[Variant]) -> dict[str, Any]:
    direction = {"source": result.source, "target": result.target or None}
    return {"variant": variants.index(result.variant), "epsilon": json_number(result.epsilon), **direction}


def _result_record(result: Pooled, variants: Sequence[Variant]) -> dict[str, Any]:
    methods = {
        method: {name: {**interval.to_json(), "n_seeds": result.n_seeds} for name, interval in figures.items()}
        for method, figures in result.methods.items()
    }
    return {
        "variant": variants.index(result.variant),
        "target": result.target or None,
        "epsilon": json_number(result.epsilon),
        "n_users": result.n_users,
        "n_seeds": result.n_seeds,
        "methods": methods,
    }


def _contrast_record(found: Contrast) -> dict[str, Any]:
    place = {"epsilon": json_number(found.epsilon), "source": found.source, "target": found.target, "metric": found.metric}
    return {**place, "n_seeds": found.n_seeds, **_by_position(found.difference)}


def _choice_record(found: Choice) -> dict[str, Any]:
    return {
        "epsilon": json_number(found.epsilon),
        "chosen": found.positions[found.chosen],
        "sure": sure(found),
        "n_users": found.n_users,
        "n_seeds": found.n_seeds,
        "candidates": [
            {"variant": at, "hr@10": hits.to_json(), "ndcg@10": gain.to_json()}
            for at, (hits, gain) in zip(found.positions, found.figures, strict=True)
        ],
        "ahead": [_by_position(difference) for difference in found.ahead if difference is not None],
    }


def _by_position(difference: Difference) -> dict[str, Any]:
    return {**difference.to_json(), "a": int(difference.a), "b": int(difference.b)}
