"""`kill -9` of everything there is, at moments that are drawn: the run ends with its last round, and every debit stands once.

Environment:
    ISTHMUS_TEST_SEED    what is drawn; the test prints it. Default: 0 for one victim at a time, a new one for the long row.
    ISTHMUS_TEST_KILLS   how many kills the long row has; default 50, with a reserve of as many rounds.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.runs import State
from tests.client.data import postgres
from tests.journeys.coordinated import Coordinated
from tests.journeys.deployment.bad_days import bad_day, begin, everybody_is_there, told, victims, what_holds

pytestmark = pytest.mark.slow

ONE_BY_ONE = (
    "node",
    "app at work",
    "app that waits",
    "executor of a node",
    "isthmus-client up",
    "SuperLink",
    "ServerApp",
    "executor of ServerApps",
    "registrar",
    "proxy",
    "isthmus-server up",
    "database",
)
ROUNDS, RESERVE = 3, 4
KILLS = int(os.environ.get("ISTHMUS_TEST_KILLS", "50"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, repository: Path, postgresql: postgres.Server) -> Iterator[Coordinated]:
    with bad_day(tmp_path_factory.mktemp("kills"), repository, postgresql) as made:
        yield made


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("victim", ONE_BY_ONE)
def test_a_run_ends_well_whoever_is_killed(ours: Coordinated, postgresql: postgres.Server, victim: str) -> None:
    draw = random.Random(f"{os.environ.get('ISTHMUS_TEST_SEED', '0')}/{victim}")
    kill = victims(ours, postgresql)[victim]
    everybody_is_there(ours)
    began = time.monotonic()
    run = begin(ours, rounds=ROUNDS, reserve=RESERVE)
    after, pause = draw.randrange(ROUNDS), draw.uniform(0.0, 6.0)
    run.tend(lambda now: now.state is State.RUNNING and now.round >= after)
    time.sleep(pause)
    run.tend(lambda now: kill(draw) or not now.state.going_on, pause_s=0.1)  # an app works for moments
    print(f"\n{victim}: killed {pause:.1f} s after round {after}", flush=True)

    ended = run.to_the_end()

    assert (ended.state, ended.round) == (State.FINISHED, ROUNDS)
    held = what_holds(run, reserve=RESERVE)
    print(f"    {told(run, held, began)}", flush=True)
    assert sum(lost for _, lost in held.values()) <= 3


@pytest.mark.timeout(3 * 3600)
def test_many_kills_in_a_row(tmp_path: Path, repository: Path, postgresql: postgres.Server) -> None:
    """Victims and moments are drawn; half a round passes between two kills on average, so that something is always being mended."""
    seed = os.environ.get("ISTHMUS_TEST_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"\nISTHMUS_TEST_SEED={seed}", flush=True)
    draw, killed = random.Random(seed), Counter[str]()
    with bad_day(tmp_path, repository, postgresql) as ours:
        began, rounds = time.monotonic(), KILLS // 2 + 2
        run = begin(ours, rounds=rounds, reserve=KILLS)
        targets = victims(ours, postgresql)
        while killed.total() < KILLS:
            now = run.tend(lambda now: killed.total() <= 2 * now.round + 2 or now.state in (State.FINISHED, State.BUDGET), 1800)
            if not (now.state.going_on or now.state in (State.LOST, State.FAILED)):
                break
            behind = killed.total() < 2 * now.round
            run.tend_for(draw.uniform(0.0, 1.0 if behind else 8.0))
            victim = draw.choice(sorted(targets))
            if targets[victim](draw):
                killed[victim] += 1
                print(f"{time.monotonic() - began:6.0f} s  kill {killed.total():2}  round {now.round:2}  {victim}", flush=True)
        ended = run.to_the_end(1800)
        held = what_holds(run, reserve=KILLS)
        print(f"{killed.total()} kills {dict(killed)}; resumed {dict(run.resumed)}; {told(run, held, began)}", flush=True)
        if ended.state is State.FINISHED:
            assert ended.round == rounds
            assert killed.total() == KILLS
        else:  # the reserve of a partner is used up, to the last attempt
            assert any(commits + lost == rounds + KILLS for commits, lost in held.values())
