"""Tier 1: the real training code on invented users, against the law it claims.

Every number comes from `client.training.local_round.run` on a ledger and a state folder made for it, with the encoder, the sharing, the
clip norm, the grid and the divisor of the run's configuration; a round has `STEPS` steps, and each of them is looked at. Each test in here
has an exact null (`shared.privacy.conformance`), so a refuted check is a fault of the code, not bad luck.

=====  ==========================================================================================================================
T1     each step on an empty batch is noise of the scale and law that were paid for
T2     no noise comes twice: steps, rounds, runs, processes, domains, a round repeated after a crash, tensors of one step
T3     one user moves the joint release of a step no further than was paid for, and no other byte of the message (`neighbours`)
T4     batches are Poisson: their sizes, and who is in them
T5     nothing outside the DP optimiser influences a release; above all no serving folder (`interference`)
T6     per-user gradients are those of one user at a time (`gradients`)
T7     the debit is on disk before the first gradient, and the ledger's events say nothing about users (`neighbours`)
=====  ==========================================================================================================================
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.training import local_round
from client.training.examples import Examples
from shared.config import RunConfig
from shared.errors import StateError
from shared.privacy import conformance as statistics
from shared.privacy.conformance import Check

from . import gradients, interference, neighbours, synthetic
from .steps import STEPS

Progress = Callable[[str], None]
"""Told in a few words what is being checked."""

_LEAST_NOISE = 0.3
"""Below it the ledger of a check would have to permit an epsilon without meaning."""

_BATCHES, _DRAWS, _USERS = 80, 1500, 400
_OTHER_PROCESSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where and with what a check works.

    Attributes:
        config: the partner's configuration, shrunk (`synthetic.shrunk`).
        workspace: an empty folder for throw-away homes.
    """

    config: RunConfig
    workspace: Path

    @property
    def coupled(self) -> RunConfig:
        """Everybody in every batch, and noise named by its key, so that two releases can be compared."""
        return synthetic.with_privacy(self.config, steps_per_round=STEPS)

    @property
    def empty(self) -> RunConfig:
        """Noise of a release, and next to never a user in a batch."""
        noise = max(self.config.privacy.noise_multiplier or 1.0, _LEAST_NOISE)
        return synthetic.with_privacy(self.config, noise="system", sampling_rate=1e-6, noise_multiplier=noise, steps_per_round=STEPS)

    def people(self, count: int, seed: int = 3) -> synthetic.People:
        return synthetic.people(count, self.config.model.dimension, seed)

    def examples(self, crowd: synthetic.People) -> Examples:
        """What turns positions of these users into the tensors of a step."""
        data = crowd.data("arts", self.config.model.descriptor_dimension)
        return local_round.Examples(
            histories=data.histories,
            coordinates=data.coordinates,
            passports=data.passports,
            descriptor=data.descriptor,
            config=self.config.training,
            generator=np.random.default_rng(1),
            prototypes=data.prototypes,
        )

    def partner(self, name: str, config: RunConfig, crowd: synthetic.People, domain: str = "arts") -> synthetic.Partner:
        return synthetic.partner(self.workspace / name, config, crowd, domain)


Test = Callable[[Bench], list[Check]]


def check(config: RunConfig, workspace: Path, progress: Progress = lambda _: None, *, processes: bool = True) -> tuple[Check, ...]:
    """Runs all of tier 1.

    Args:
        config: the run configuration to test; shapes are shrunk as `synthetic.shrunk` says.
        workspace: an empty folder; whatever is made in it may be thrown away.
        progress: told what is being checked.
        processes: also start two new processes, which takes some seconds of a second core.
    Returns:
        The checks in order; each says whether the code passed it.
    Raises:
        ConfigError: the configuration promises no privacy.
    """
    bench = Bench(config=synthetic.shrunk(config)[0], workspace=workspace)
    tests = dict(TESTS)
    with other_processes(bench, _OTHER_PROCESSES if processes else 0) as elsewhere:
        if processes:
            tests["noise in other processes"] = lambda bench: noise_in_other_processes(bench, elsewhere())
        found: list[Check] = []
        for words, test in tests.items():
            progress(words)
            begun = time.perf_counter()
            checks = test(bench)
            seconds = (time.perf_counter() - begun) / len(checks)
            found += [dataclasses.replace(one, seconds=round(seconds, 3)) for one in checks]
    return tuple(sorted(found, key=lambda one: one.name[:2]))


# --- T1 ---


def noise_on_an_empty_batch(bench: Bench) -> list[Check]:
    """T1: rounds of a domain whose users are in no batch, and a round of a domain without users."""
    config = bench.empty
    crowded, deserted = bench.partner("t1-users", config, bench.people(40)), bench.partner("t1-nobody", config, bench.people(0))
    steps = np.concatenate([crowded.sums(1), crowded.sums(2), deserted.sums(1)])
    p = statistics.noise_of_steps(steps, local_round.round_mechanism(config))
    scale = config.privacy.noise_multiplier
    return [Check.of_law("T1 noise", f"all {STEPS} steps of a round on empty batches are normal noise with multiplier {scale:g}", p)]


# --- T2 ---


@contextmanager
def other_processes(bench: Bench, count: int) -> Iterator[Callable[[], list[np.ndarray]]]:
    """Starts a round in each of some new processes; gives a function that waits for them and returns their releases."""
    homes = [bench.workspace / f"t2-process-{number}" for number in range(count)]
    running = [synthetic.start_elsewhere(home, bench.empty) for home in homes]

    def released() -> list[np.ndarray]:
        for one in running:
            _, said = one.communicate(timeout=300)
            if one.returncode != 0:
                raise StateError(f"a round in another process failed: {said.decode(errors='replace').strip().splitlines()[-1:]}")
        return [synthetic.released_elsewhere(home) for home in homes]

    try:
        yield released
    finally:
        for one in running:
            if one.poll() is None:
                one.kill()
                one.communicate()


def noise_in_other_processes(bench: Bench, elsewhere: list[np.ndarray]) -> list[Check]:
    """T2: the same round of the same domain in new processes.

    Args:
        elsewhere: what they released.
    """
    here = bench.partner("t2-process", bench.empty, bench.people(40))
    here.update(1)
    released = [synthetic.moments(here.state), *elsewhere]
    return [Check.of_law("T2 processes", "two processes share no noise", statistics.noise_correlation(released))]


def noise_used_twice(bench: Bench) -> list[Check]:
    """T2: a round repeated on a restored copy of a folder, the next round, the next run, another domain, steps and parts of a step."""
    config, crowd = bench.empty, bench.people(40)
    arts = bench.partner("t2-arts", config, crowd)
    first = arts.sums(1)
    restored = arts.copied(bench.workspace / "t2-restored")
    music = bench.partner("t2-music", config, crowd, "music").sums(1)
    lost, repeated = arts.sums(2), restored.sums(2)
    another_run = arts.another_run("run-2").sums(1)
    correlation = statistics.noise_correlation
    return [
        Check.of_law("T2 after a crash", "a round that is repeated draws new noise", correlation([*lost, *repeated])),
        Check.of_law("T2 rounds", "rounds and runs share no noise", correlation([*first, *lost, *another_run])),
        Check.of_law("T2 domains", "two domains share no noise", correlation([*first, *music])),
        Check.of_law("T2 steps", "the steps of a round share no noise", correlation(first)),
        Check.of_law("T2 tensors", "no two parts of one step share noise", statistics.noise_repeats(first)),
    ]


# --- T4 ---


def poisson_batches(bench: Bench) -> list[Check]:
    """T4: who is read in the steps of a real round, and many more draws of the sampler it uses."""
    rate = float(np.clip(bench.config.privacy.sampling_rate, 0.05, 0.5))
    config = synthetic.with_privacy(bench.config, noise="system", sampling_rate=rate, steps_per_round=_BATCHES, noise_multiplier=4.0)
    batches: list[np.ndarray] = []
    partner = bench.partner("t4", config, bench.people(_USERS))
    partner.data = synthetic.watched(partner.data, batches.append)
    partner.update()
    sampler = local_round.PoissonSampler()
    drawn = [sampler.draw(_USERS, rate) for _ in range(_DRAWS)]
    sizes = min(1.0, 2 * min(statistics.batch_sizes(many, _USERS, rate) for many in (batches, drawn)))
    who = min(1.0, 2 * min(statistics.inclusion(many, _USERS, rate) for many in (batches, drawn)))
    skipped = _BATCHES - len(batches)
    return [
        Check.of_fact("T4 steps", f"{_BATCHES} steps that were paid for are {_BATCHES} steps that were taken", abs(skipped)),
        Check.of_law("T4 batch sizes", f"sizes of batches are binomial at rate {rate:g}", sizes),
        Check.of_law("T4 who is in a batch", f"each user comes by a coin of their own at rate {rate:g}", who),
    ]


# --- T6 ---


def per_user_gradients(bench: Bench) -> list[Check]:
    """T6: against autograd on one user at a time, in batches of several sizes; and whether a user's gradient changes with the others."""
    crowd, model = bench.people(24), gradients.moved_model(bench.coupled, "arts")
    examples = bench.examples(crowd)
    batches = [examples(np.arange(count)) for count in (1, 4, 17)]
    square = bench.examples(synthetic.long_histories(8, bench.config.model.dimension))(np.arange(8))
    batches.append(square.part(0, min(square.history.shape[1], square.users)))  # as many users as items in the longest history
    error = max(gradients.gradient_error(model, batch) for batch in batches)
    alone = bench.examples(crowd)(np.arange(4))
    change = 0.0
    for others in ([9, 10, 11, 12], list(range(4, 24))):
        change = max(change, gradients.coupling(model, alone, bench.examples(crowd)(np.array([0, 1, 2, 3, *others]))))
    for kind in synthetic.LOUD:
        loud = bench.examples(crowd.with_loud(7, kind))(np.array([0, 1, 2, 3, 7]))
        change = max(change, gradients.coupling(model, alone, loud))
    limit = statistics.GRADIENT_TOLERANCE
    return [
        Check.of_size("T6 per-user gradients", "relative error against one user at a time", error, limit),
        Check.of_size("T6 one user's gradient", "relative change of a user's gradient with the others in the batch", change, limit),
    ]


TESTS: tuple[tuple[str, Test], ...] = (
    ("noise on an empty batch", noise_on_an_empty_batch),
    ("one user more or less", neighbours.one_user_more_or_less),
    ("the rest of the message", neighbours.rest_of_the_message),
    ("Poisson batches", poisson_batches),
    ("per-user gradients", per_user_gradients),
    ("what is booked, and when", neighbours.what_is_booked),
    ("the serving folder and earlier runs", interference.nothing_else_is_read),
    ("noise used twice", noise_used_twice),
)
"""All of tier 1 but for the noise of other processes."""
