r"""A second privacy-loss accountant, written apart from the first one: for where PRV takes too long or gives no answer.

It shares no line with `accountant.epsilon_pld` and no library but NumPy and SciPy. Both directions of add/remove of the Poisson-subsampled
Gaussian are composed, :math:`P = (1-q) N(0, \sigma^2) + q N(1, \sigma^2)` against :math:`Q = N(0, \sigma^2)` and the other way round;
epsilon is the larger. For REPLACE_ONE, Q is the mixture with :math:`N(-1, \sigma^2)`: the direction in which two users differ most.

**One step, rounded pessimistically.** The privacy loss :math:`L = \log(P/Q)`, drawn from P, is put on a grid of width h: the mass of each
cell is split between its two ends so that its mass under P and under Q stay what they are ("connect the dots", Doroshenko et al. 2022).
The curve of hockey-stick divergences becomes its own chord, which lies above it because it is convex: an upper bound. What lies beyond the
grid moves up: to the lowest point, or to an infinite loss.

**Many steps** are the n-th power of a Fourier transform. Each pmf is tilted first, multiplied by :math:`e^{\lambda l}` with the
:math:`\lambda` at which Chernoff's bound meets delta: the mass that decides then sits in the middle of the window, and the errors of
floating point and of the window's ends are relative to delta, not to 1. At delta = 1e-12, where the untilted transform of other accountants
is off by some 1e-3, this one is not.

**Error.** Given the true loss l, the rounded one l' has :math:`E e^{-l'} = e^{-l}` on an interval of width h, so by Hoeffding's lemma
:math:`E l' \le l + h^2/8`; the rest is independent from step to step, centred, and of range h. With probability :math:`1-\beta` the sum of
T rounded losses is above the true one by at most :math:`c = T h^2/8 + h \sqrt{T \log(1/\beta)/2}` (Hoeffding's inequality). Therefore

.. math:: \epsilon'(\delta + \beta) - c \;\le\; \epsilon(\delta) \;\le\; \epsilon'(\delta),

where :math:`\epsilon'` is of the rounded losses, and :math:`\beta`, a thousandth of delta, also holds the mass beyond the grid. Both ends
are returned. h is such that c is about .005, or .2 % of epsilon where that is more. What floating point and the window's ends can do is
added to delta for the upper end and taken off for the lower one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtr, ndtri

from ..errors import ConfigError
from .accountant import MOST_STEPS, Group, grouped
from .mechanism import Mechanism

MOST_CELLS = 1 << 23
"""Cells of one window; more would take over a second and 500 MB."""

_ERROR, _RELATIVE_ERROR = 0.005, 0.002
_BETA = 1e-3  # of delta
_WINDOW = 1e-9  # tilted mass that may lie beyond each end of the window
_TILTS = (1e-3, 5e3)
_LEAST_WIDTH = 1e-9
_LEAST_NOISE = 0.05  # below it one step costs hundreds

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """Epsilon lies in [low, high]; ``high`` is the one to compare and to print."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Rounded loss of one step, taken ``times`` times: mass ``pmf[i]`` at ``(first + i) h``, and ``beyond`` at infinity."""

    first: int
    pmf: Array
    beyond: float
    times: int


def epsilon_bracket(events: Iterable[Mechanism], delta: float, *, replace: bool = False) -> Bracket | None:
    """Both bounds of epsilon of all events together; None where there is too little noise, or the grid would be too large.

    Args:
        events: any mechanisms; equal ones are grouped.
        delta: in (0, 1).
        replace: one user's contribution changes instead of vanishing.

    Raises:
        ConfigError: when delta is no probability.
    """
    if not 0.0 < delta < 1.0:
        raise ConfigError("delta is a probability between 0 and 1, both excluded")
    groups = grouped(events)
    if groups is None:
        return Bracket(low=math.inf, high=math.inf)
    if not groups:
        return Bracket(low=0.0, high=0.0)
    if min(sigma for _, sigma, _ in groups) < _LEAST_NOISE or sum(steps for *_, steps in groups) > MOST_STEPS:
        return None
    found = [_one_direction(groups, delta, direction) for direction in (("replace",) if replace else ("remove", "add"))]
    both = [one for one in found if one is not None]
    if len(both) < len(found):
        return None
    return Bracket(low=max(one.low for one in both), high=max(one.high for one in both))


def _one_direction(groups: tuple[Group, ...], delta: float, direction: str) -> Bracket | None:
    steps = sum(times for *_, times in groups)
    tail = _BETA * delta / (4.0 * steps)

    def on_grid(width: float) -> list[_Step] | None:
        made = [_rounded(q, sigma, times, width, tail, direction) for q, sigma, times in groups]
        return None if any(step is None for step in made) else [step for step in made if step is not None]

    width = max(_rough_width(groups), _LEAST_WIDTH)
    rough = on_grid(width)
    if rough is None:
        return None
    allowed = max(_ERROR, _RELATIVE_ERROR * _best_tilt(rough, width, delta)[1])
    width = allowed / (1.02 * _deviation(steps, delta))  # the term T h^2 / 8 fits into the rest
    fine = on_grid(width)
    return None if fine is None else _compose(fine, width, delta, steps)


def _rough_width(groups: tuple[Group, ...]) -> float:
    """Fine enough to see the loss of one step, whose standard deviation is about q / sigma, with at most 100,000 cells."""
    least = min(sigma for _, sigma, _ in groups)
    reach = 0.5 / least**2 + 10.0 / least
    return float(max(min(1e-3, *(q / (10.0 * sigma) for q, sigma, _ in groups)), reach / 1e5))


def _deviation(steps: int, delta: float) -> float:
    """Hoeffding's sqrt(T log(1 / beta) / 2), with half of beta; the other half is for what lies beyond the grid."""
    return math.sqrt(steps * math.log(2.0 / (_BETA * delta)) / 2.0)


# --- one step ----------------------------------------------------------------------------------------------------------------------------
_SHIFTS = {"remove": (1.0, 0.0), "add": (0.0, 1.0), "replace": (1.0, -1.0)}
"""Per direction, where the user's own contribution moves the output under P, and under Q."""


def _rounded(q: float, sigma: float, times: int, width: float, tail: float, direction: str) -> _Step | None:
    """Connects the dots of one step's loss; None where it has more cells than fit.

    Under P and under Q the output x is the mixture (1 - q) N(0, sigma^2) + q N(shift, sigma^2), and the loss is monotone in x.
    """
    far = sigma * -float(ndtri(tail))
    reach = [_loss(x, q, sigma, direction) for x in (-far - 1.0, far + 1.0)]
    first, last = math.floor(min(reach) / width), math.ceil(max(reach) / width)
    if last - first + 1 > MOST_CELLS:
        return None
    losses = width * np.arange(first, last + 1)
    x = _output(losses, q, sigma, direction)
    of_p, of_q = (_mixture(x, q, sigma, shift) for shift in _SHIFTS[direction])
    outside = [(1.0 - q) * ndtr(end / sigma) + q * ndtr((end - shift) / sigma) for end, shift in _ends(x, direction)]
    # a + b = P,  a e^{-l} + b e^{-l-h} = Q
    upper = np.clip((of_p - of_q * np.exp(losses[:-1])) / -math.expm1(-width), 0.0, of_p)
    pmf = np.zeros(len(losses))
    pmf[:-1] += of_p - upper
    pmf[1:] += upper
    pmf[0] += outside[0]
    return _Step(first=first, pmf=pmf, beyond=float(outside[1]), times=times)


def _mixture(x: Array, q: float, sigma: float, shift: float) -> Array:
    """Mass between neighbouring outputs, whether they rise or fall."""
    low, high = np.minimum(x[:-1], x[1:]), np.maximum(x[:-1], x[1:])
    mass: Array = (1.0 - q) * _normal_mass(low / sigma, high / sigma) + q * _normal_mass((low - shift) / sigma, (high - shift) / sigma)
    return mass


def _ends(x: Array, direction: str) -> list[tuple[float, float]]:
    """Two tails under P as lower ones, (end, shift) each: of the losses below the grid, and of those above it."""
    shift = _SHIFTS[direction][0]
    if direction == "add":
        return [(-float(x[0]), -shift), (float(x[-1]), shift)]
    return [(float(x[0]), shift), (-float(x[-1]), -shift)]


def _loss(x: float, q: float, sigma: float, direction: str) -> float:
    """log P(x) - log Q(x)."""

    def log_ratio(shift: float) -> float:
        """Of the mixture over N(0, sigma^2)."""
        exponent = (2.0 * shift * x - shift**2) / (2.0 * sigma**2)
        return exponent if q == 1.0 else float(np.logaddexp(math.log1p(-q), math.log(q) + exponent))

    p, of_q = _SHIFTS[direction]
    return log_ratio(p) - log_ratio(of_q)


def _output(losses: Array, q: float, sigma: float, direction: str) -> Array:
    """The x with these losses; infinite where there is none."""
    if direction == "replace":
        return _output_replaced(losses, q, sigma)
    log_ratio = losses if direction == "remove" else -losses
    if q == 1.0:
        return sigma**2 * log_ratio + 0.5
    above = log_ratio - math.log1p(-q)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # log((e^l - (1-q)) / q), without a large exponential
        exponent = np.where(above > 0.0, log_ratio + np.log(-np.expm1(-above)) - math.log(q), -np.inf)
    return sigma**2 * exponent + 0.5


def _output_replaced(losses: Array, q: float, sigma: float) -> Array:
    r"""With :math:`u = e^{x/\sigma^2}, a = q e^{-1/2\sigma^2}, b = 1 - q`: :math:`(b + a u) / (b + a / u) = e^l`, a quadratic; odd in l."""
    size = np.abs(losses)
    b, a = 1.0 - q, q * math.exp(-0.5 / sigma**2)
    grown = -b * np.expm1(-size)
    root = np.log(grown + np.sqrt(grown**2 + 4.0 * a**2 * np.exp(-size))) - math.log(2.0 * a)
    x: Array = np.sign(losses) * sigma**2 * (size + root)
    return x


def _normal_mass(low: Array, high: Array) -> Array:
    """Mass of the standard normal distribution between two points, to nearly full relative precision in both tails."""
    flip = low > 0.0
    a, b = np.where(flip, -high, low), np.where(flip, -low, high)
    mass: Array = np.maximum(ndtr(b) - ndtr(a), 0.0)
    return mass


# --- many steps --------------------------------------------------------------------------------------------------------------------------
def _log_moment(steps: list[_Step], width: float, tilt: float) -> float:
    r"""K(t) = sum of n log E[e^{t l}] over the finite losses."""
    total = 0.0
    for step in steps:
        exponents = tilt * width * (step.first + np.arange(len(step.pmf)))
        highest = float(exponents[step.pmf > 0.0].max())
        total += step.times * (highest + math.log(float(np.dot(step.pmf, np.exp(np.minimum(exponents - highest, 0.0))))))
    return total


def _best_tilt(steps: list[_Step], width: float, delta: float) -> tuple[float, float]:
    """The tilt at which Chernoff's bound gives the least epsilon, and that epsilon."""
    from scipy.optimize import minimize_scalar

    def chernoff(log_tilt: float) -> float:
        tilt = math.exp(log_tilt)
        return (_log_moment(steps, width, tilt) - math.log(delta)) / tilt

    found = minimize_scalar(chernoff, bounds=(math.log(_TILTS[0]), math.log(_TILTS[1])), method="bounded", options={"xatol": 0.02})
    return math.exp(float(found.x)), float(found.fun)


def _window(steps: list[_Step], width: float, tilt: float, centre: float) -> tuple[int, int]:
    """First and last cell of the tilted sum: by Chernoff at most `_WINDOW` of it lies beyond each."""
    spread = max(abs(centre), 1.0)
    ends = []
    for sign in (-1.0, 1.0):
        best = math.inf
        for power in np.arange(-14.0, 8.0, 0.5):
            s = 2.0**power * max(tilt, 1.0 / spread)
            moment = _log_moment(steps, width, tilt + sign * s) - _log_moment(steps, width, tilt)
            best = min(best, (moment - math.log(_WINDOW)) / s)
        ends.append(sign * best)
    return math.floor(ends[0] / width), math.ceil(ends[1] / width)


def _compose(steps: list[_Step], width: float, delta: float, count: int) -> Bracket | None:
    tilt, highest = _best_tilt(steps, width, delta)
    log_moment = _log_moment(steps, width, tilt)
    first, last = _window(steps, width, tilt, highest)
    cells = next_fast_len(last - first + 2, real=True)
    if cells > MOST_CELLS:
        return None
    transform = np.ones(cells // 2 + 1, dtype=np.complex128)
    for step in steps:
        transform *= _power(rfft(_tilted(step, width, tilt, cells)), step.times)
    tilted = np.roll(irfft(transform, cells), -(first % cells))
    tilted = np.maximum(tilted, 0.0)

    losses = width * (first + np.arange(cells))
    known = losses > highest - 500.0 / (tilt + 1.0)  # below it the weights would overflow; epsilon lies close to `highest`
    losses, tilted = losses[known], tilted[known]
    scale = math.exp(min(log_moment - tilt * highest, 700.0))
    weights = scale * tilted * np.exp(-tilt * (losses - highest))
    above = np.cumsum(weights[::-1])[::-1]  # mass of losses from here on
    other = np.cumsum((weights * np.exp(highest - losses))[::-1])[::-1]  # the same under Q, times e^highest
    beyond = -math.expm1(sum(step.times * math.log1p(-step.beyond) for step in steps))
    rounding = count * 16.0 * np.finfo(float).eps * math.log2(cells) * math.sqrt(1.0 + 0.5 / (tilt * width))
    slack = (2.0 * _WINDOW + rounding) * scale * np.exp(-tilt * np.minimum(losses - highest, 0.0))

    def solve(target: float, sign: float) -> float:
        return _epsilon(losses, above + beyond + sign * slack, other, target, highest)

    shift = count * width**2 / 8.0 + width * _deviation(count, delta)
    return Bracket(low=max(0.0, solve(delta * (1.0 + _BETA), -1.0) - shift), high=max(0.0, solve(delta, 1.0)))


def _tilted(step: _Step, width: float, tilt: float, cells: int) -> Array:
    """The tilted pmf of one step, of sum 1, laid round a circle of cells."""
    exponents = tilt * width * (step.first + np.arange(len(step.pmf)))
    weights = step.pmf * np.exp(exponents - float(exponents[step.pmf > 0.0].max()))
    places = (step.first + np.arange(len(step.pmf))) % cells
    return np.bincount(places, weights=weights / weights.sum(), minlength=cells)


def _power(transform: Array, times: int) -> Array:
    """By repeated squaring: a relative error of a few units in the last place for each factor."""
    result = np.ones_like(transform)
    while times:
        if times & 1:
            result *= transform
        times >>= 1
        if times:
            transform = transform * transform
    return result


def _epsilon(losses: Array, above: Array, other: Array, target: float, highest: float) -> float:
    """Least epsilon with delta(epsilon) <= target; between two losses delta is ``above - e^epsilon other``."""
    at_losses = above - np.exp(np.minimum(losses - highest, 600.0)) * other  # delta at each loss; its own mass counts nothing there
    too_much = np.flatnonzero(at_losses > target)
    if len(too_much) == 0:
        return float(losses[0])
    cell = int(too_much[-1]) + 1
    if cell >= len(losses):
        return math.inf
    if other[cell] <= 0.0:
        return float(losses[cell])
    room = (above[cell] - target) / other[cell]
    return float(losses[cell]) if room <= 0.0 else min(highest + math.log(room), float(losses[cell]))
