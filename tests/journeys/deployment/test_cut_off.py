"""Nobody is killed, and nobody hears anybody: the connection is cut for a minute, or all partners are gone for ten.

Environment, to try this quickly:
    ISTHMUS_TEST_CUT_S    how long the connection is cut; default 60.
    ISTHMUS_TEST_AWAY_S   how long all partners are gone; default 600.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.runs import State
from tests.journeys.coordinated import Coordinated
from tests.journeys.deployment.bad_days import bad_day, begin, everybody_is_there, seconds, start_services, told, what_holds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CUT_S, AWAY_S = seconds("ISTHMUS_TEST_CUT_S", 60.0), seconds("ISTHMUS_TEST_AWAY_S", 600.0)
ROUNDS, RESERVE = 3, 3


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Coordinated]:
    with bad_day(tmp_path_factory.mktemp("cut"), repository) as made:
        yield made


def _proxies(ours: Coordinated) -> list[int]:
    """The proxy's master and its workers, which name no home."""
    masters = ours.pids("nginx: master", str(ours.home.root))
    workers = [int(pid) for one in masters for pid in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
    return masters + workers


@contextlib.contextmanager
def _frozen(pids: list[int]) -> Iterator[None]:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _silence(ours: Coordinated) -> None:
    """Connections stay open and carry nothing, as behind a dead link."""
    with _frozen(_proxies(ours)):
        time.sleep(CUT_S)


def _refusal(ours: Coordinated) -> None:
    """Nobody listens: the proxy is gone, and what would start it again sleeps."""
    with _frozen(ours.pids("server.cli up", str(ours.home.root))):
        ours.kill("nginx: master", str(ours.home.root))
        for pid in _orphans(ours):
            os.kill(pid, signal.SIGKILL)
        time.sleep(CUT_S)


def _orphans(ours: Coordinated) -> list[int]:
    """Workers that outlive their master hold its port."""
    (supervisor,) = ours.pids("server.cli up", str(ours.home.root))
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [int(pid) for pid in children if "nginx: worker" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.parametrize("cut", [_silence, _refusal])
def test_a_connection_cut_in_mid_run_costs_time_and_no_attempt(ours: Coordinated, cut) -> None:  # type: ignore[no-untyped-def]
    everybody_is_there(ours)
    began = time.monotonic()
    run = begin(ours, rounds=ROUNDS, reserve=RESERVE)
    run.tend(lambda now: now.round >= 1)

    cut(ours)
    ended = run.to_the_end()

    assert (ended.state, ended.round) == (State.FINISHED, ROUNDS)
    held = what_holds(run, reserve=RESERVE)
    print(f"\n{cut.__name__} for {CUT_S:.0f} s: {told(run, held, began)}, resumed {dict(run.resumed)}", flush=True)
    assert {lost for _, lost in held.values()} == {0}  # what was trained is answered from disk


def _all_leave(ours: Coordinated, how: int) -> None:
    """Every partner is gone at once: in order, or as in a power cut."""
    for domain in ours.partners:
        process = ours.processes.pop(domain)
        if how == signal.SIGKILL:
            for pid in ours.pids(f"{ours.partners[domain].base}/"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
        else:
            process.send_signal(how)
        process.wait(120)


def test_a_run_waits_for_partners_who_are_all_gone(ours: Coordinated) -> None:
    """Within the run's own patience nobody has to do anything: the coordinator's side is not touched."""
    everybody_is_there(ours)
    began = time.monotonic()
    run = begin(ours, rounds=ROUNDS, reserve=RESERVE, wait_s=AWAY_S + 600)
    run.tend(lambda now: now.round >= 1)

    _all_leave(ours, signal.SIGKILL)
    time.sleep(AWAY_S)
    assert run.now.state is State.RUNNING, run.now.to_json()
    start_services(ours)
    ended = run.to_the_end()

    assert (ended.state, ended.round) == (State.FINISHED, ROUNDS)
    held = what_holds(run, reserve=RESERVE)
    print(f"\nall gone for {AWAY_S:.0f} s: {told(run, held, began)}", flush=True)
    assert run.resumed == {}
    assert {lost <= 1 for _, lost in held.values()} == {True}


def test_a_run_that_waited_long_enough_says_who_is_missing_and_goes_on_when_they_are_back(ours: Coordinated) -> None:
    everybody_is_there(ours)
    began = time.monotonic()
    run = begin(ours, rounds=ROUNDS, reserve=RESERVE, wait_s=5.0, round_timeout_s=20.0)
    run.tend(lambda now: now.round >= 1)

    _all_leave(ours, signal.SIGTERM)
    until = time.monotonic() + 600
    while (gone := run.now).state.going_on:
        assert time.monotonic() < until, gone.to_json()
        time.sleep(1.0)

    assert gone.state is State.FAILED
    assert gone.error is not None
    assert gone.error["kind"] == "TooFewClients"
    assert "resume" in gone.error["do"]
    start_services(ours)
    everybody_is_there(ours)
    ended = run.to_the_end()

    assert (ended.state, ended.round) == (State.FINISHED, ROUNDS)
    held = what_holds(run, reserve=RESERVE)
    print(f"\nall left: {gone.error['what']}; then {told(run, held, began)}", flush=True)
    assert sum(run.resumed.values()) >= 1
