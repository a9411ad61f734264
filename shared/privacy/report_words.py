"""The fixed words of the privacy officer's report: what is claimed, of whom it is true, and what is claimed by nobody.

Every sentence here is a claim, so each says no more than the design's promise: one user in one domain, everything the coordinator and the
other partners receive, the whole life of the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

UNIT = "one user with all their interactions in one domain, their links and every passport they brought there"
NEIGHBOURS = "add or remove one user in one domain"
FLAVOUR = "(epsilon, delta)-differential privacy, approximate, at user level"
COVERS = "everything that the coordinator and the other partners ever receive from the domain"
LIFETIME = "the whole life of the ledger: all rounds, runs, lost attempts and releases; it is never reset"
CONTRIBUTION = (
    "However many interactions a user has, one step moves by at most the clip norm C because of them, over all parameters that are "
    "trained together; non-finite contributions count as zero."
)

UNPROTECTED = (
    (
        "passports",
        (
            "An interest passport is made for one other domain that the user chose. Towards that domain it is disclosure by consent, or "
            "has a local guarantee of its own; this epsilon says nothing about it. An exact passport of a short history shows the items "
            "themselves. A private passport hides what the person did, not that they use this domain: it is one noisy direction, drawn "
            "once for life. Its own epsilon holds whoever received it, and adds up over the domains that made one of the same person. Of "
            "somebody whose exact passport went out as well, it hides nothing."
        ),
    ),
    (
        "timing",
        "When messages are sent, and how long the work before them took.",
    ),
    (
        "replies",
        "Whether a reply arrives at all. A failure of any cause looks the same, but that it happened can be seen.",
    ),
    (
        "participation",
        "That the domain takes part, in which runs, with which public settings: sampling rate, noise, steps, model shapes.",
    ),
    (
        "catalogue",
        "Items and their public texts, and everything computed from them alone. Public by the domain's declared policy.",
    ),
    (
        "serving",
        (
            "What the domain shows to its own users is made from its exact data. The claim is about what the coordinator and other "
            "partners receive."
        ),
    ),
)
"""(name, what). Outside the claim, whatever the status says."""

PARTIES = (
    (
        "the domain",
        "keeps the interactions, adds the noise, writes the ledger",
        "everything about its own users",
    ),
    (
        "the coordinator",
        "averages the updates, chooses the next model",
        "nothing: it may try to learn from all it receives",
    ),
    (
        "other partners",
        "receive averaged models, and passports that users asked for",
        "nothing but those passports",
    ),
    (
        "whoever reads this page",
        "reads the public schedule and what follows from it",
        "nothing",
    ),
)
"""(who, does what, is trusted with what)."""

ADVERSARY = (
    "Sees every message of every round, knows every other user, and chooses what it sends back with all that in mind. It does not see "
    "the domain's machine: its memory, its files, its random numbers. It cannot change noise, clip norm, sampling rate, steps, loss or "
    "code: a client refuses what lies outside its agreed ranges, and code that its partner did not allow."
)
MODEL = "Central in each domain, which holds its users' data in the clear; local towards the coordinator and the other partners."
SECURE_AGGREGATION = "Not used and not needed: each domain's update is private by itself."

MECHANISM = (
    "In each step every user is drawn independently with chance q (Poisson). The gradient of each drawn user is clipped to norm C over "
    "ALL parameters that the loss reads, the sum is rounded to a grid of width g, and Gaussian noise of standard deviation sigma (C + g "
    "sqrt p) is added to each of its p coordinates. The noisy sum is divided by a public constant. What leaves is computed from such "
    "sums alone."
)
RELEASED = "after each round, the shared arrays of the transfer layer: post-processing of the round's noisy steps"
SENSITIVITY = "One user moves the rounded sum by at most C + g sqrt p in Euclidean norm; the noise is scaled by that."
CONSTANTS = (
    "The divisor of the noisy sum, learning rates, history length and item filters are public constants of the run's configuration. The "
    "ledger names that configuration by its SHA-256."
)
POST_PROCESSING = "Averaging, and everything else the coordinator or anybody does with what it received, costs nothing further."
COMPOSITION = (
    "Every attempt is booked before data are touched and stays booked, whether its update left or was lost. Releases (popularity, "
    "metrics, counts, moments) are mechanisms of their own in the same sum. Trials at this partner are runs like any other. Public "
    "benchmarks cost nothing."
)
DECIDES = {
    "pld": "Privacy loss distributions: the domain's life is one schedule that was fixed before any data were touched.",
    "rdp-filter": (
        "A Renyi filter at one order fixed in advance: there was a second run, a raise or a release, so parameters may have depended on "
        "what was released before. It vouches for the ceiling (Feldman and Zrnic 2021), and that is the claim. What it counts as spent, "
        "and the privacy loss distribution, are shown as information: a claim about either would need an odometer."
    ),
    "none": "Nobody: nothing here adds noise.",
}
RULE = (
    "No number is given unless a second accountant is within 0.02 or 1 % of the privacy loss distribution, and Renyi accounting is not "
    "below it."
)

RANDOMNESS = (
    "Noise and sampling come from the operating system's generator; they are not seeded and not saved. Test builds may seed them, and "
    "their ledgers say NOT PRIVATE."
)
FLOATING_POINT = (
    "The guarantee is proved for real arithmetic. Clipped sums are rounded to a grid and noise is drawn in 64 bit; no claim is made "
    "against attacks on floating-point artefacts beyond that."
)
SIDE_CHANNELS = "Messages have fixed shapes. Timing and power are not protected."
KEYS = (
    "Each event is signed with the partner's Ed25519 key, and a change of key is signed by the old one. Whoever holds that key can "
    "rewrite the ledger beyond the coordinator's last receipt."
)
TIERS = (
    (
        "0",
        "the ledger alone",
        (
            "Chain, signatures, sequence, ceilings, receipts, manifest, epsilon recomputed. It finds any change by someone without the "
            "partner's key, and with the coordinator's receipts any change up to the last receipt. It does not show that the code did "
            "what the ledger says."
        ),
    ),
    (
        "1",
        "conformance of the code",
        (
            "Noise, sampling, sensitivity and non-interference of the real training code, on synthetic users, each with a p-value. A "
            "test passes bugs that it does not look for."
        ),
    ),
    (
        "2",
        "one-run audit",
        (
            "Thousands of planted canaries against the claimed guarantee. The audited epsilon is a lower bound under this attack; not "
            "being refuted is no proof."
        ),
    ),
)
"""(tier, name, what it shows and does not show)."""

ERASURE_DOES = (
    "Removes the person's history, the passports they brought and those made for them, and caches of both from this domain.",
    "Fits again what serves recommendations, without them.",
    "Keeps a keyed mark, so that they are never trained on again, even if their old data are delivered once more.",
)
ERASURE_DOES_NOT = (
    "It gives no epsilon back: what was sent was sent, and stays counted.",
    "It does not unlearn: models that were trained before keep whatever little this epsilon permits them to hold about the person.",
    "It does not reach a passport that another domain has already received; ask there. Nor copies outside this software.",
    ("It leaves no trace in the ledger, on this page or in anything that is sent: an erasure would itself tell something about a person."),
)
RESISTANCE = (
    "Against membership inference and extraction from what was sent, the stated epsilon and delta are the bound. Measured attacks on "
    "this system's code are the audits in this report; they are evidence, not proof."
)

UTILITY = (
    "No exact measure of quality is part of this report, because it would itself tell about people. Private ones, where a domain released "
    "any, are listed as its releases."
)
PERSONS_LIKE_THIS = (
    "For a person who is in this domain and in others with the same history of debits. What other domains really spent is in their own "
    "ledgers: a report on all of them together adds up what happened."
)
PERSONS_OF_THESE = (
    "The debits of the named domains, put together and priced as one list: the worst choice of k among the domains of this report. A "
    "person counts in every domain that holds their interactions or a passport of theirs."
)

NOT_STATED = "not stated"

PERSONS_BY_CEILING = "Where a Renyi filter decides in a domain, what its ceiling permits counts here, not what it has spent so far."

CLAIM = {
    "spent": "what was spent, with what is booked: the life of this ledger is one schedule that was fixed before any data were touched",
    "ceiling": "the ceiling: what may ever be known, whatever was chosen after seeing results; what was spent so far is information",
}
"""Which number is the claim, and why."""

PASSED = "more was spent than the ceiling permits, and the Renyi filter vouches for the ceiling only"


def epsilon_text(epsilon: float | None) -> str:
    """Two digits after the point, rounded UP, so that a page never shows less than was spent.

    >>> epsilon_text(4.7659), epsilon_text(10.9), epsilon_text(None)
    ('4.77', '10.90', 'none')
    """
    if epsilon is None or not math.isfinite(epsilon):
        return "none"
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:.2f}"


def odds_factor_text(epsilon: float) -> str:
    """``e^epsilon``, rounded up to three digits.

    >>> odds_factor_text(4.77), odds_factor_text(0.5), odds_factor_text(20.0)
    ('118', '1.65', '486 million')
    """
    if epsilon > 34:
        return f"10 to the power {math.ceil(epsilon / math.log(10))}"
    factor = math.exp(epsilon)
    unit = 10.0 ** (math.floor(math.log10(factor)) - 2)
    factor = math.ceil(factor / unit - 1e-9) * unit
    for size, name in ((1e12, "million million"), (1e9, "thousand million"), (1e6, "million")):
        if factor >= size:
            return f"{factor / size:.3g} {name}"
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.3g}"


def delta_text(delta: float) -> str:
    """A small chance as people write it.

    >>> delta_text(1e-5), delta_text(2.2e-6), delta_text(1e-9), delta_text(0.0)
    ('0.00001', '0.0000022', '1e-09', '0')
    """
    if not 1e-7 <= delta < 1.0:
        return f"{delta:g}"
    return f"{delta:.{2 - math.floor(math.log10(delta))}f}".rstrip("0").rstrip(".")


def probability_text(delta: float) -> str:
    """
    >>> probability_text(1e-5), probability_text(2e-6), probability_text(1.1e-5)
    ('0.00001 (1 in 100,000)', '0.000002 (1 in 500,000)', '0.000011 (1 in 90,900)')
    """
    return f"{delta_text(delta)} (1 in {_three_digits_down(1 / delta):,})"


def posterior(prior: float, epsilon: float) -> float:
    """The most that a chance of ``prior`` can become: odds times ``e^epsilon``.

    >>> round(posterior(0.1, 4.77), 3)  # 1/9 * 118 = 13.1, and 13.1 / 14.1
    0.929
    """
    if epsilon > 700:
        return 1.0
    odds = prior / (1 - prior) * math.exp(epsilon)
    return odds / (1 + odds)


def percent_text(share: float) -> str:
    """A chance as a percentage, rounded up, and never as certainty.

    >>> percent_text(0.9291), percent_text(0.99999)
    ('93 %', 'more than 99.9 %')
    """
    if share > 0.999:
        return "more than 99.9 %"
    if share > 0.99:
        return f"{math.ceil(share * 1000 - 1e-9) / 10:.1f} %"
    return f"{math.ceil(share * 100 - 1e-9)} %"


def _three_digits_down(value: float) -> int:
    unit = 10.0 ** max(0, math.floor(math.log10(value)) - 3)
    return int(math.floor(value / unit + 1e-6) * unit)


def plain_words(domain: str, *, epsilon: float, delta: float, ceiling: float) -> list[str]:
    """The guarantee of one domain, for an officer and a board member: paragraphs without symbols where words will do.

    This is about a life whose claim is what it spent; `plain_words_of_a_ceiling` is about the others.

    Args:
        domain: its name.
        epsilon: spent so far, finite.
        delta: that the epsilon holds at.
        ceiling: epsilon that the domain's whole life may cost.
    """
    return [
        *_claimed(domain, f"everything that the coordinator and the other partners ever received from {domain}", epsilon, delta),
        f"The domain permits epsilon {ceiling:g} for its whole life and has spent {epsilon_text(epsilon)}"
        + (" of it. What is spent never comes back." if epsilon <= ceiling else ": MORE than it permits. What is spent never comes back."),
    ]


_RAISED = "A limit that was set anew after results had been seen is one only as far as the raise owed nothing to them."


def plain_words_of_a_ceiling(domain: str, *, ceiling: float, delta: float, spent: float, raised_from: float | None) -> list[str]:
    """The same about a domain in which a filter decides: it vouches for the ceiling, never for what was spent so far.

    Args:
        domain: its name.
        ceiling: epsilon that the domain's whole life may cost, and the claim.
        delta: that it holds at.
        spent: epsilon so far, by the filter's count.
        raised_from: the first ceiling, where this one is not it.
    """
    raised = "" if raised_from is None else f" That ceiling was raised from {raised_from:g}. {_RAISED}"
    return [
        *_claimed(domain, f"everything that the coordinator and the other partners will ever have received from {domain}", ceiling, delta),
        "That is the ceiling, what the domain permits for its whole life, and not what it has spent: later settings may have depended on "
        "earlier results, and then only the limit can be vouched for."
        f"{raised} Spent so far, as information: {epsilon_text(spent)} of {ceiling:g}. What is spent never comes back.",
    ]


def _claimed(domain: str, everything: str, epsilon: float, delta: float) -> list[str]:
    shown = float(epsilon_text(epsilon))
    factor, chance = odds_factor_text(shown), probability_text(delta)
    before, most = percent_text(0.1), percent_text(posterior(0.1, shown))
    return [
        f"Domain {domain} keeps its users' interactions at home. What it sends about them is blurred with random noise, so that what is "
        "sent is almost as likely with any one person as without.",
        f"Think of two worlds that differ in one thing: in one of them, one certain person was never a user of {domain}. Whatever anybody "
        f"concludes from {everything}, its odds differ between the two worlds by a factor of at most "
        f"e^{epsilon_text(epsilon)} = {factor}, except with probability {chance}.",
        f"For one person: somebody who knows everybody else's data, and holds it for {before} likely that this person is among the users, "
        f"can be brought to at most {most} by all of it, with the same exception. That is a limit for the worst case, not a forecast; "
        "without such protection there is no limit. A factor of 1 would mean that nothing at all can be learned about anybody.",
    ]


def plain_words_together(domains: Sequence[str], *, epsilon: float | None, delta: float) -> list[str]:
    """What several domains mean for one person who is in all of them; ``epsilon`` is None where no number may be given."""
    first = (
        "Each domain keeps its users' interactions at home, and what it sends about them is blurred with random noise. How far this "
        "protects one person in one domain stands in that domain's section."
    )
    if epsilon is None:
        return [first, "For a person who is in all of these domains no number can be given."]
    return [
        first,
        f"A person who is in all of {', '.join(domains)} is covered by everything they sent, together. Think of two worlds that differ in "
        "one thing: in one of them, that person was never a user of any of them. Whatever anybody concludes from everything that was ever "
        f"received from them, its odds differ between the two worlds by a factor of at most e^{epsilon_text(epsilon)} = "
        f"{odds_factor_text(float(epsilon_text(epsilon)))}, except with probability {probability_text(delta)}.",
    ]
