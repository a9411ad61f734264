"""A line of the preflight: green, or red with what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that was looked at.

    Args:
        name: of what was looked at.
        ok: green.
        what: what was found.
        do: what to do about it; of red lines only.
    """

    name: str
    ok: bool
    what: str
    do: str = ""

    @classmethod
    def green(cls, name: str, what: str) -> Line:
        return cls(name=name, ok=True, what=what)

    @classmethod
    def red(cls, name: str, what: str, do: str) -> Line:
        return cls(name=name, ok=False, what=what, do=do)
