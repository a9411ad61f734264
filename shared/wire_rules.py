"""What a field of a message, a receipt or a manifest may be: predicates without any knowledge of how it travels."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Rule = Callable[[Any], bool]


def text(pattern: str) -> Rule:
    compiled = re.compile(pattern)
    return lambda value: type(value) is str and compiled.fullmatch(value) is not None


def whole(low: int, high: int) -> Rule:
    return lambda value: type(value) is int and low <= value <= high


def exactly(wanted: Any) -> Rule:
    return lambda value: type(value) is type(wanted) and value == wanted


def or_empty(rule: Rule) -> Rule:
    return lambda value: (type(value) is str and value == "") or rule(value)


def optional(rule: Rule) -> Rule:
    return lambda value: value is None or rule(value)


DOMAIN = text(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
RUN_ID = text(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
SHA256 = text(r"[0-9a-f]{64}")
SIGNATURE = text(r"[0-9a-f]{128}")
DIGEST = text(r"[0-9a-f]{16,64}")
ROUND = whole(0, 100_000)


def epsilon(value: Any) -> bool:
    """Infinity is one (a run without noise); NaN, negative numbers and minus zero are not."""
    return type(value) is float and not math.isnan(value) and math.copysign(1.0, value) > 0.0


def toml(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= 65_536


def canonical_json(record: Mapping[str, str | int]) -> str:
    """The one text of a flat record: keys sorted, no blanks, ASCII."""
    return json.dumps(dict(record), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def flat_json(value: Any) -> bool:
    """Whether a text is `canonical_json` of a record of texts and whole numbers."""
    if type(value) is not str or not 2 <= len(value) <= 2048:
        return False
    try:
        record = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(record, dict)
        and len(record) <= 16
        and all(type(v) in (str, int) for v in record.values())
        and canonical_json(record) == value
    )
