r"""What was done to the data, kept apart from what it cost.

A `Mechanism` is a permanent record: the ledger stores it, and accountants of any later version must be able to price it. It describes
``steps`` equal steps of

.. math:: S = \mathrm{round}_g\Big(\sum_{i \in \mathrm{batch}} \mathrm{clip}_C(\nabla \ell_i)\Big) + N(0, (\sigma (C + g\sqrt p))^2 I),
          \qquad \mathrm{batch} \sim \mathrm{Poisson}(q).

Rounding each of :math:`p` coordinates to a multiple of :math:`g` moves the sum by at most :math:`g/2` per coordinate, so two neighbouring
sums differ by at most :math:`C + g\sqrt p` in L2; the noise is scaled by that, and the accountants price :math:`\sigma` alone.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import LedgerError

KINDS = ("poisson_gaussian", "gaussian", "none")
"""Permanent in meaning. ``none`` is no protection at all: it lives only in ledgers whose genesis says NOT PRIVATE."""

_FLOATS = ("sampling_rate", "noise_multiplier", "clip_norm", "grid")
_INTEGERS = ("dimension", "steps")
_MOST_STEPS = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """Equal steps of one mechanism.

    Attributes:
        kind: one of `KINDS`.
        sampling_rate: q, chance of each user to be in a batch, in (0, 1]; 1 for ``gaussian``.
        noise_multiplier: sigma, noise standard deviation over sensitivity; above 0 unless the kind is ``none``.
        clip_norm: C, L2 bound on one user's joint gradient; above 0 unless the kind is ``none``.
        grid: g, width of the grid the clipped sum is rounded to, in the unit of a gradient; 0 where nothing is rounded.
        dimension: p, coordinates of the joint vector.
        steps: how many times the step is taken.

    Raises:
        LedgerError: naming the field, when a number is NaN, infinite, negative, subnormal, of another type or without meaning.
    """

    kind: str
    sampling_rate: float
    noise_multiplier: float
    clip_norm: float
    grid: float
    dimension: int
    steps: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LedgerError(f"a mechanism is none of {', '.join(KINDS)}", do="A newer version may have written it: update isthmus.")
        for name in _FLOATS:
            _check_float(name, getattr(self, name))
        for name in _INTEGERS:
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= _MOST_STEPS:
                raise LedgerError(f"mechanism: '{name}' is not a whole number of at least 1")
        if self.kind == "none":
            return
        for name in ("sampling_rate", "noise_multiplier", "clip_norm"):
            if getattr(self, name) == 0.0:
                raise LedgerError(f"mechanism: '{name}' is 0, which protects nobody", do="Only the kind 'none' may say so.")
        if self.sampling_rate > 1.0 or (self.kind == "gaussian" and self.sampling_rate != 1.0):
            raise LedgerError("mechanism: 'sampling_rate' is a chance of at most 1, and exactly 1 without sampling")

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise on each coordinate of the clipped, rounded sum.

        >>> Mechanism(kind="gaussian", sampling_rate=1.0, noise_multiplier=2.0, clip_norm=0.5, grid=0.25, dimension=4, steps=1).noise_scale
        2.0
        """
        return self.noise_multiplier * (self.clip_norm + self.grid * math.sqrt(self.dimension))  # 2 (0.5 + 0.25 * 2) = 2

    def for_steps(self, steps: int) -> Mechanism:
        """The same mechanism, taken ``steps`` times."""
        return dataclasses.replace(self, steps=steps)

    def to_record(self) -> dict[str, str | int]:
        """Plain values for a ledger; floats as ``float.hex()``, so that they read back exactly."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Mechanism:
        """Reads what `to_record` wrote.

        Raises:
            LedgerError: when a field is missing, unknown, or not written the way `to_record` writes it.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        if sorted(record) != sorted(names):
            raise LedgerError("a mechanism has other fields than these: " + ", ".join(names))
        values = {name: float_from_hex(name, record[name]) if name in _FLOATS else record[name] for name in names}
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks the types


def float_from_hex(name: str, text: object) -> float:
    """Reads one number written by ``float.hex()``; any other spelling of it is refused, so that a number has one form only."""
    if not isinstance(text, str):
        raise LedgerError(f"'{name}' is not written as a hexadecimal number")
    try:
        value = float.fromhex(text)
    except (ValueError, OverflowError):
        raise LedgerError(f"'{name}' is not written as a hexadecimal number") from None
    if value.hex() != text:
        raise LedgerError(f"'{name}' is not written in its one canonical form")
    return value


def _plain(value: object) -> str | int:
    return value.hex() if isinstance(value, float) else value  # type: ignore[return-value]


def _check_float(name: str, value: object) -> None:
    if type(value) is not float:
        raise LedgerError(f"mechanism: '{name}' is not a floating-point number")
    if not math.isfinite(value):
        raise LedgerError(f"mechanism: '{name}' is not finite")
    if math.copysign(1.0, value) < 0:
        raise LedgerError(f"mechanism: '{name}' is negative")
    if 0.0 < value < sys.float_info.min:
        raise LedgerError(f"mechanism: '{name}' is subnormal: it would lose digits on its way")
