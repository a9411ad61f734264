"""A configuration as TOML in which every key is explained: for files that people are going to edit."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Collection, Iterator
from typing import Any

import tomli_w

from .config import Setting

_WIDTH = 118


def commented(record: Any, head: str, *, leave_out: Collection[str] = ()) -> str:
    """Every key of a record with its meaning, unit and range; reading the text back gives an equal record.

    Args:
        record: a dataclass whose fields were declared with `setting`, or are such dataclasses themselves.
        head: what the file is, in plain sentences; lines are broken here, an empty line begins a paragraph.
        leave_out: dotted names of keys and tables that are not written.
    """
    return "\n".join([*_remark(head), *_lines(record, "", frozenset(leave_out))]) + "\n"


def _lines(record: Any, path: str, leave_out: frozenset[str]) -> Iterator[str]:
    chosen = [one for one in dataclasses.fields(record) if path + one.name not in leave_out]
    for one in chosen:
        declared: Setting | None = one.metadata.get("setting")
        if declared is not None:
            value = getattr(record, one.name)
            yield ""
            yield from _remark(declared.help + _limits(declared, value))
            yield tomli_w.dumps({one.name: value}).rstrip("\n")
    for one in chosen:  # tables come last: what follows one belongs to it
        inner = getattr(record, one.name)
        if "setting" not in one.metadata and dataclasses.is_dataclass(inner):
            yield ""
            yield f"[{path}{one.name}]"
            yield from _remark((type(inner).__doc__ or "").strip().split("\n", 1)[0])
            yield from _lines(inner, f"{path}{one.name}.", leave_out)


def _remark(text: str) -> list[str]:
    return [f"# {line}" for part in text.split("\n\n") for line in textwrap.wrap(part, _WIDTH, break_long_words=False)]


def _limits(declared: Setting, value: Any) -> str:
    """Unit and range in words.

    >>> _limits(Setting("", "s", 0.1, 60.0), 1.0), _limits(Setting("", choices=("a", "b")), "a"), _limits(Setting("", low=1), 2)
    (' (s, 0.1 to 60)', ' ("a" or "b")', ' (at least 1)')
    """
    said = [declared.unit] if declared.unit else []
    if declared.choices:
        said.append(" or ".join(f'"{choice}"' for choice in declared.choices))
    elif not isinstance(value, str):
        low, high = (f"{end:.15g}" if math.isfinite(end) else "" for end in (declared.low, declared.high))
        said.append(f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}" if high else "")
    known = ", ".join(filter(None, said))
    return f" ({known})" if known else ""
