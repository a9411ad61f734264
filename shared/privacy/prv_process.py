"""The whole program of one question to Opacus' PRV accountant, run in a process of its own because it may not come back.

Reads ``{"groups": [[q, sigma, steps], ...], "delta": delta}`` from standard input, floats as ``float.hex()``; prints epsilon.
"""

from __future__ import annotations

import json
import sys
import warnings


def main() -> None:
    # Numerical warnings at sampling rate 1 and on import of the library; the answer is compared with another accountant's anyway.
    warnings.simplefilter("ignore")
    from opacus.accountants import PRVAccountant

    question = json.load(sys.stdin)
    accountant = PRVAccountant()
    accountant.history = [(float.fromhex(sigma), float.fromhex(q), steps) for q, sigma, steps in question["groups"]]
    print(repr(float(accountant.get_epsilon(float.fromhex(question["delta"])))))


if __name__ == "__main__":
    main()
