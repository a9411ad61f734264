"""The division of people in a benchmark: training, validation, cold. It hangs on the person, never on a row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

TRAIN = 0
VALIDATION = 1
COLD = 2

_COLD_BELOW = 3 * 2**256 // 10
_VALIDATION_BELOW = 4 * 2**256 // 10


def role(link_ids: Sequence[str], split_seed: int) -> np.ndarray:
    """The part that each person plays in every domain of a data set.

    ``u = SHA-256("{split_seed}:{link_id}") / 2^256``, read big-endian: ``u < .30`` is cold, ``u < .40`` validation, the rest training. Cold
    and validation people enter no loss, no count and no fit in any domain.

    Args:
        link_ids: (n,) ids that name the same person in all domains.
        split_seed: names the division.
    Returns:
        (n,) int8 of `TRAIN`, `VALIDATION` and `COLD`.

    >>> role(["ann", "ben", "cyd", "dan"], split_seed=0).tolist()
    [0, 1, 0, 0]
    """
    prefix = hashlib.sha256(f"{split_seed}:".encode())
    roles = np.empty(len(link_ids), dtype=np.int8)
    for position, link_id in enumerate(link_ids):
        digest = prefix.copy()
        digest.update(link_id.encode())
        u = int.from_bytes(digest.digest(), "big")
        roles[position] = COLD if u < _COLD_BELOW else VALIDATION if u < _VALIDATION_BELOW else TRAIN
    return roles
