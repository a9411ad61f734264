r"""Tier 2: one run of the real training code with canaries in it, held against the claim (`shared.privacy.one_run`).

4,000 canaries toss a coin each. Those inside are users like others, but for one thing: between backward and clipping their gradient is
overwritten with

.. math:: a_t\, 100\, C\, u_j,\qquad a_t = (-1)^{t + 1},\quad
          u_j = \tfrac1{\sqrt k}\,(\text{coordinate } j \text{ of each of the } k \text{ tensors that have as many}),

which is orthogonal for any two of them and has to be cut to length C. Everything from clipping on is production code: clipping, rounding,
noise, the optimiser, the state on disk, the ledger. The auditor is a server that knows everybody else and reads the noisy sum of the whole
joint vector of each step, which is more than any server ever receives. Two scores, fixed before the run:

* ``sum``: :math:`\sum_t a_t \langle S_t, u_j\rangle`, the best there is against independent noise;
* ``weighted``: :math:`\sum_t w_t \langle S_t, u_j\rangle` with :math:`w = \Sigma^{-1} a`, where the auditor reads the covariance
  :math:`\Sigma` of the steps off the release itself: it finds the mixture of the steps that has the least noise, be it because noise
  comes back in other steps or rounds, or because some of them had less of it.

A canary in a single tensor with a constant sign would be blind to a clip in each tensor and to one noise for all rounds; this one is not,
and against correct code it is as strong. The audit configuration is fixed (q = 1, sigma = 3, mu = 1 over three rounds of three steps),
because sampling would dilute what can be seen; sampling is tested by tier 1. The partner's clip norm, grid, sharing and training settings
stay; the encoder is the smallest, because its gradients are overwritten and those of a large one would fill gigabytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.model.methods import make_model
from client.model.objective import Batch
from client.training import dp_sgd, local_round
from shared.config import ModelConfig, RunConfig
from shared.errors import AuditError
from shared.privacy.ledger import read_events
from shared.privacy.ledger_schema import mechanism_of
from shared.privacy.mechanism import Mechanism
from shared.privacy.one_run import Guesses, guess, judge

from . import synthetic
from .steps import STEPS

CANARIES = 4_000
LOUDNESS = 100.0
"""Length of a canary's gradient before clipping, in clip norms."""
GUESSES = (CANARIES // 10, CANARIES // 5, CANARIES // 2)
SCORES = ("sum", "weighted")
TAU = 0.05
DELTA = 1e-5
ROUNDS, NOISE_MULTIPLIER = 3, 3.0
LEAST_SIGNAL = 0.75
"""Share of the canaries' gradients that must arrive, or the audit saw nothing and says nothing."""
MOST_SIGNAL = 1.5
"""More cannot arrive where each user is clipped to C: its standard deviation is .05 at most, so this is ten of them away."""

_MODEL = ModelConfig(dimension=512, rank=8, descriptor_dimension=8, prototypes=2)  # seven tensors of 4,096 coordinates
_OTHERS = 64
_LEAST_VARIANCE = 1e-9  # share of the mean: far below what a canary adds, far above rounding
_LEAST_AT_ONCE, _MOST_AT_ONCE = 128, 512  # users in a micro-batch: several of them, in seconds, within some hundred megabytes
_DOMAIN = "canary"

SHOWS = (
    "This training code ran once, {rounds} rounds of {steps} steps, with {canaries:,} canaries in it, each in or out by a coin, and an "
    "auditor that sees the whole noisy sum of each step guessed the coins. The guesses show, at {confidence:.0%}, that the code leaks at "
    "least epsilon {audited:.2f} under this attack, where {claimed:.2f} is claimed in the audit's configuration (delta {delta:g}). On "
    "average a canary moved the sum by {signal:.2f} clip norms, where 1 is the most that was paid for."
)
SHOWS_NOT = (
    "Not being refuted is no proof: another attack may see more. Sampling is not tested here (everybody is in every batch), nor what goes "
    "around the private optimiser (data, encoder, serving files, the message); the conformance checks of tier 1 test those."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRunResult:
    """What tier 2 found.

    Attributes:
        refuted: the code leaks more than it claims, or an event of chance ``tau`` at most happened. Either the guesses say so, or more of
            the canaries arrived than clipping lets through (`MOST_SIGNAL`).
        tau: largest chance to refute code that keeps its claim, over all tests together.
        p_value: level at which the claim would just be refuted; 1 at most.
        canaries: m, how many coins were tossed.
        tests: the guesses: by which score, how many, how many right.
        scores: names of the scores, fixed in advance.
        claimed_epsilon: of the audit's configuration, by the ledger's accountant.
        delta: of all three.
        audited_epsilon: at least so much leaks, with a confidence of 1 - ``tau``.
        steinke_epsilon: the same by a method that knows no family of mechanisms.
        signal: mean length, in clip norms, by which a canary moved the noisy sum; about 1 in code that clips each user.
        shows, shows_not: plain words.
        seconds: of the clock.
    """

    refuted: bool
    tau: float
    p_value: float
    canaries: int
    tests: tuple[Guesses, ...]
    scores: tuple[str, ...]
    claimed_epsilon: float
    delta: float
    audited_epsilon: float
    steinke_epsilon: float
    signal: float
    shows: str
    shows_not: str
    seconds: float

    def to_record(self) -> dict[str, Any]:
        """Plain values for a verdict file."""
        return dataclasses.asdict(self)


def audit_config(config: RunConfig) -> RunConfig:
    """The fixed audit configuration; of the partner's it keeps what the code path depends on, the clip norm first of all.

    Raises:
        ConfigError: the configuration promises no privacy.
    """
    config, _ = synthetic.shrunk(config)
    privacy = dataclasses.replace(
        config.privacy,
        delta=DELTA,
        noise_multiplier=NOISE_MULTIPLIER,
        sampling_rate=1.0,
        rounds=ROUNDS,
        reserve_rounds=0,
        steps_per_round=STEPS,
        noise="system",
    )
    model = dataclasses.replace(_MODEL, sharing=config.model.sharing)
    at_once = min(max(config.compute.micro_batch_users, _LEAST_AT_ONCE), _MOST_AT_ONCE)
    compute = dataclasses.replace(config.compute, micro_batch_users=at_once)
    return dataclasses.replace(config, name="canary", privacy=privacy, model=model, compute=compute)


def audit(config: RunConfig, workspace: Path, progress: Callable[[str], None] = lambda _: None) -> OneRunResult:
    """Runs the audit on a throwaway ledger and state, which are gone when it returns.

    Args:
        config: the partner's run configuration.
        workspace: a folder to work in.
        progress: told what is being done, in words.
    Raises:
        ConfigError: the configuration promises no privacy.
        AuditError: the canaries did not arrive in what was released, so that nothing can be said.
    """
    started = time.monotonic()
    config = audit_config(config)
    canaries = Canaries(config)
    with tempfile.TemporaryDirectory(prefix="one-run-", dir=workspace) as folder:
        sums, booked = _rounds(config, canaries, Path(folder), progress)  # (T, m)
    progress("judging the guesses")
    signal = _signal(sums, canaries)
    scores = {"sum": signs(len(sums)) @ sums, "weighted": _weighted(sums)}
    tests = [guess(name, scores[name], canaries.inside, made) for name in SCORES for made in GUESSES]
    found = judge(tests, booked, delta=DELTA, tau=TAU)
    words = {
        "rounds": ROUNDS,
        "steps": STEPS,
        "canaries": CANARIES,
        "confidence": 1 - TAU,
        "audited": found.audited_epsilon,
        "claimed": found.claimed_epsilon,
        "delta": DELTA,
        "signal": signal,
    }
    return OneRunResult(
        refuted=found.refuted or signal > MOST_SIGNAL,
        tau=found.tau,
        p_value=found.p_value,
        canaries=CANARIES,
        tests=found.tests,
        scores=SCORES,
        claimed_epsilon=found.claimed_epsilon,
        delta=found.delta,
        audited_epsilon=found.audited_epsilon,
        steinke_epsilon=found.steinke_epsilon,
        signal=signal,
        shows=SHOWS.format(**words),
        shows_not=SHOWS_NOT,
        seconds=time.monotonic() - started,
    )


def _rounds(config: RunConfig, canaries: Canaries, folder: Path, progress: Callable[[str], None]) -> tuple[np.ndarray, Mechanism]:
    """(T, m) the noisy sum of each step along each canary, less what the other users are known to have added; what the ledger booked."""
    crowd = synthetic.people(len(canaries.kinds), config.model.dimension)
    partner = synthetic.partner(folder, config, crowd, _DOMAIN)
    heard: list[np.ndarray] = []
    for number in range(1, ROUNDS + 1):
        progress(f"canaries in round {number} of {ROUNDS}")
        with canaries.inserted():
            heard += list(partner.sums(number))
        partner.layer = partner.update(number).arrays  # a server with one partner sends its own layer back
    if len(heard) != len(canaries.known):
        raise AuditError("training took another number of steps than it drew batches, so the audit cannot tell what is in which")
    sums = [canaries.along(canaries.part(joint) - known) for joint, known in zip(heard, canaries.known, strict=True)]
    return np.array(sums), _booked(partner.ledger_path)


def _booked(ledger_path: Path) -> Mechanism:
    """The claim: what the ledger says was done, all steps together."""
    mechanisms = [mechanism_of(event.payload["mechanism"]) for event in read_events(ledger_path) if event.kind == "intent"]
    steps = sum(one.steps for one in mechanisms)
    if len({one.for_steps(1) for one in mechanisms}) != 1:
        raise AuditError("the audit's ledger booked rounds of different mechanisms, though all of them were configured alike")
    return mechanisms[0].for_steps(steps)


def _weighted(sums: np.ndarray) -> np.ndarray:
    """(m,) the mixture of the steps (T, m) with the least noise for its signal (Fisher's discriminant); it knows no coins.

    A canary inside adds its signs a, so the covariance of all canaries is that of the noise plus a multiple of a a^T, and solving with
    either gives the same direction. A little of the mean variance is added, because noise that comes back has no inverse.
    """
    covariance = np.atleast_2d(np.cov(sums))
    least = _LEAST_VARIANCE * np.trace(covariance) / len(sums)
    weights = np.linalg.solve(covariance + least * np.eye(len(sums)), signs(len(sums)))
    return np.asarray(weights @ sums)


def _signal(sums: np.ndarray, canaries: Canaries) -> float:
    along = signs(len(sums)) @ sums / (len(sums) * canaries.clip_norm)  # (m,) mean 1 inside, 0 outside
    signal = float(along[canaries.inside].mean() - along[~canaries.inside].mean())
    if not signal >= LEAST_SIGNAL:
        raise AuditError(
            f"the one-run audit saw only {signal:.2f} of its canaries in the release, so it can say nothing about the code",
            do="Training changed in a way that this audit cannot follow; the canary command has to change with it.",
        )
    return signal


def signs(count: int) -> np.ndarray:
    """(count,) 1, -1, 1, ...: with which sign a canary comes in each step of the run."""
    return (-1.0) ** np.arange(count)


class Canaries:
    """The coins, and the gradients of those inside.

    Attributes:
        inside: (m,) bool, by entropy of the operating system.
        kinds: (n,) which canary a training user is; -1 for the other users, who come first.
        tensors: names of the k parameters that have a coordinate for each canary.
        known: for each step so far (k, m), what the other users added to its sum; the auditor knows them, and could compute it.
    """

    def __init__(self, config: RunConfig) -> None:
        self.inside = (np.frombuffer(os.urandom(CANARIES), dtype=np.uint8) & 1).astype(bool)
        self.kinds = np.concatenate([np.full(_OTHERS, -1), np.flatnonzero(self.inside)])
        self.clip_norm = config.privacy.clip_norm
        sizes = {name: parameter.numel() for name, parameter in make_model(config, seed=0).named_parameters()}
        self.tensors = [name for name, size in sizes.items() if size >= CANARIES]
        self.known: list[np.ndarray] = []
        self._starts = [
            start for start, size in zip(accumulate(sizes.values(), initial=0), sizes.values(), strict=False) if size >= CANARIES
        ]
        self._users = np.zeros(0, dtype=np.int64)  # of the batch, as far as they were not seen yet

    def part(self, joint: np.ndarray) -> np.ndarray:
        """(p,) -> (k, m) the coordinates of the canaries in a joint vector."""
        return np.stack([joint[start : start + CANARIES] for start in self._starts])

    def along(self, wide: np.ndarray) -> np.ndarray:
        """(k, m) -> (m,) inner products with the canaries' directions."""
        return np.asarray(wide.sum(axis=0) / math.sqrt(len(self.tensors)))

    @contextlib.contextmanager
    def inserted(self) -> Iterator[None]:
        """Puts the canaries into the next round. What stands in the modules now is what runs, whoever put it there."""
        canaries, examples, optimizer = self, local_round.Examples, dp_sgd.PublicOptimizer

        class WithCanaries(optimizer):  # type: ignore[misc, valid-type]
            def clip_and_accumulate(self) -> None:
                canaries._overwrite(self.params)
                super().clip_and_accumulate()

        def watched(**arguments: Any) -> Callable[[np.ndarray], Batch]:
            make_batch = examples(**arguments)

            def draw(users: np.ndarray) -> Batch:
                self._users = users
                self.known.append(np.zeros((len(self.tensors), CANARIES)))
                return make_batch(users)

            return draw

        with _instead(local_round, "Examples", watched), _instead(dp_sgd, "PublicOptimizer", WithCanaries):
            yield

    def _overwrite(self, parameters: list[Any]) -> None:
        """Overwrites the canaries' rows of a micro-batch, and notes what the other rows will add."""
        samples = [parameter.grad_sample.flatten(1) for parameter in parameters]  # (rows, p_k)
        users, self._users = self._users[: len(samples[0])], self._users[len(samples[0]) :]
        if len(users) != len(samples[0]):
            raise AuditError("training computed gradients for more users than it drew, so the audit cannot tell whose they are")
        kinds = self.kinds[users]
        wide = [sample for sample in samples if sample.shape[1] >= CANARIES]
        self._note([sample[kinds < 0].double() for sample in samples])
        rows = torch.from_numpy(np.flatnonzero(kinds >= 0))
        columns = torch.from_numpy(kinds[kinds >= 0])
        for sample in samples:
            sample[rows] = 0.0
        sign = float(signs(len(self.known))[-1])
        for sample in wide:
            sample[rows, columns] = sign * LOUDNESS * self.clip_norm / math.sqrt(len(wide))
        for parameter, sample in zip(parameters, samples, strict=True):  # flattening copies where the layout asks for it
            parameter.grad_sample = sample.view(parameter.grad_sample.shape)

    def _note(self, samples: list[torch.Tensor]) -> None:
        norms = torch.stack([sample.square().sum(dim=1) for sample in samples]).sum(dim=0).sqrt()  # (rows,)
        factors = (self.clip_norm / norms).clamp(max=1.0)
        finite = norms.isfinite()
        wide = [sample for sample in samples if sample.shape[1] >= CANARIES]
        self.known[-1] += np.stack([(factors[finite] @ sample[finite, :CANARIES]).numpy() for sample in wide])


@contextlib.contextmanager
def _instead(module: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
