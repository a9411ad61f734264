"""The noise of a run, solved once for its whole schedule, before anybody is greeted."""

from __future__ import annotations

import dataclasses
import math

from shared.config import RunConfig


def solved(config: RunConfig) -> RunConfig:
    """The same configuration with its noise multiplier filled in; unchanged where it is given or where nothing is private.

    A noise-free test build is priced like the run it stands for, in a ledger that says NOT PRIVATE.

    Raises:
        UnreachableBudget: no noise reaches the target epsilon.
    """
    privacy = config.privacy
    if privacy.noise_multiplier > 0.0 or not math.isfinite(privacy.epsilon):
        return config
    from shared.privacy.accountant import noise_multiplier_for

    noise = noise_multiplier_for(
        epsilon=privacy.epsilon, delta=privacy.delta, sampling_rate=privacy.sampling_rate, steps=privacy.total_steps
    )
    return dataclasses.replace(config, privacy=dataclasses.replace(privacy, noise_multiplier=noise))
