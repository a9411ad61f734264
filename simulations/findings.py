"""What the federation brought, in plain words, computed from the verdicts; honest also where it brought nothing."""

from __future__ import annotations

from dataclasses import dataclass

from .bootstrap import Difference
from .comparison import Pooled


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One direction in words.

    Args:
        title: the direction.
        verdict: "gain", "personal gain", "no gain" or "loss".
        sentences: what the figures say, one thought each.
    """

    title: str
    verdict: str
    sentences: tuple[str, ...]


def finding(result: Pooled) -> Finding | None:
    """Words for one direction by HR@10; None where the federation or popularity was not measured."""
    gain = result.difference("federated", "popularity")
    if gain is None:
        return None
    personal = result.difference("federated", "federated-shuffled")
    verdict = _verdict(gain, personal)
    sentences = [_gain(gain, result)]
    if personal is not None:
        sentences.append(_personal(personal, gain))
    head, own = result.difference("federated", "head-only"), result.difference("federated", "target-only")
    if head is not None:
        sentences.append(_part(head, "The transfer layer itself, above what the refitted head alone brings,", "adds"))
    if own is not None:
        sentences.append(_part(own, "Training together, above the same model trained at the target alone,", "adds"))
    ceiling = result.methods.get("pooled-ridge")
    if ceiling is not None:
        sentences.append(_ceiling(result, gain))
    return Finding(title=result.title, verdict=verdict, sentences=tuple(sentences))


def signed(value: float) -> str:
    """A difference with its sign, three decimals.

    >>> signed(0.0314), signed(-0.002)
    ('+0.031', '-0.002')
    """
    return f"{value:+.3f}"


def between(difference: Difference) -> str:
    """Mean and interval of a difference."""
    found = difference.interval
    if found.low != found.low:
        return f"{signed(found.mean)} (too few users for an interval)"
    return f"{signed(found.mean)} (95 % interval {signed(found.low)} to {signed(found.high)})"


def _verdict(gain: Difference, personal: Difference | None) -> str:
    if gain.beats:
        return "personal gain" if personal is not None and personal.beats else "gain"
    return "loss" if gain.interval.high < 0 else "no gain"


def _gain(gain: Difference, result: Pooled) -> str:
    federated, popularity = (result.methods[m]["hr@10"].mean for m in ("federated", "popularity"))
    figures = f"HR@10 {federated:.3f} against {popularity:.3f}, {between(gain)}"
    if gain.beats:
        return f"The federation beats popularity: {figures}."
    if gain.interval.high < 0:
        return f"The federation is worse than popularity: {figures}."
    guard = ", and it is not worse by more than .005 either" if gain.non_inferior else ""
    return f"The federation brought nothing that can be told from chance over popularity: {figures}{guard}."


def _personal(personal: Difference, gain: Difference) -> str:
    if not personal.beats:
        return f"Nothing of it can be called personal: somebody else's interest does about as well, {between(personal)}."
    so = ", so the gain is personal" if gain.beats else ""
    return f"A user's own interest is worth more than somebody else's{so}: {between(personal)}."


def _part(difference: Difference, what: str, verb: str) -> str:
    if difference.beats:
        return f"{what} {verb} {between(difference)}."
    if difference.interval.high < 0:
        return f"{what} costs {between(difference)}."
    return f"{what} brings no difference that can be told from chance: {between(difference)}."


def _ceiling(result: Pooled, gain: Difference) -> str:
    popularity, federated, ceiling = (result.methods[m]["hr@10"].mean for m in ("popularity", "federated", "pooled-ridge"))
    sees = f"A model that sees everybody's raw data of both domains, which nobody may deploy, reaches {ceiling:.3f}"
    if gain.beats and federated <= ceiling:
        return (
            f"{sees}; the federation reaches {100 * (federated - popularity) / (ceiling - popularity):.0f} % of its gain over popularity."
        )
    if gain.beats:
        return f"{sees}; the federation is not below it."
    return f"{sees}."
