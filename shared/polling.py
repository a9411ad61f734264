"""How long to wait before asking again for something that will come at some time.

Flower's node and its coordinator ask every 3 s, whatever they wait for: a round that trains for a second takes ten.
"""

from __future__ import annotations

SHARE, SHORTEST_S, LONGEST_S = 0.2, 0.25, 3.0


def pause_s(waited_s: float) -> float:
    """Seconds until the next question: a fifth of the wait so far, so that asking costs little and no wait is prolonged by more than that.

    Args:
        waited_s: since there was last something.

    >>> [pause_s(waited) for waited in (0.0, 5.0, 600.0)]
    [0.25, 1.0, 3.0]
    """
    return min(max(SHARE * waited_s, SHORTEST_S), LONGEST_S)
