"""The deadline for a message: it lies before the server's, ends an app that hangs, and costs a round no more than what was debited."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import app_process, rounds, watchdog
from client.settings import ClientSettings
from client.watchdog import Deadline, DeadlinePassed, deadline, within
from shared.privacy.ledger import Ledger
from tests.client.partner_world import World, exchange, instruction

ROOT = Path(watchdog.__file__).parents[1]


@given(ttl=st.floats(0.1, 86_400), permitted=st.floats(0, 86_400))
def test_both_ends_lie_before_the_server_stops_waiting(ttl: float, permitted: float) -> None:
    found = deadline(permitted_s=permitted, ttl_s=ttl)

    assert 0 < found.soft_s < found.hard_s < ttl
    assert permitted == 0 or found.soft_s <= permitted


@pytest.mark.parametrize(
    ("permitted", "ttl", "expected"),
    [
        (0, 0, Deadline(soft_s=0, hard_s=0)),  # nobody said anything
        (0, 600, Deadline(soft_s=540, hard_s=570)),  # a tenth is left, half of it for a process that does not react
        (0, 30, Deadline(soft_s=20, hard_s=25)),  # at least ten seconds are left,
        (0, 4, Deadline(soft_s=2, hard_s=3)),  # and at most half of it
        (50, 0, Deadline(soft_s=50, hard_s=80)),
        (550, 600, Deadline(soft_s=540, hard_s=570)),
        (50, 60, Deadline(soft_s=50, hard_s=55)),
    ],
)
def test_the_margin_can_be_computed_by_hand(permitted: float, ttl: float, expected: Deadline) -> None:
    assert deadline(permitted_s=permitted, ttl_s=ttl) == expected


def test_a_block_that_takes_too_long_gets_the_exception_and_leaves_no_alarm_behind() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    begun = time.monotonic()
    with pytest.raises(DeadlinePassed, match="deadline of this partner"), within(Deadline(soft_s=0.1, hard_s=0.4)):
        time.sleep(30)
    assert time.monotonic() - begun < 10

    with within(Deadline(soft_s=0.2, hard_s=0.3)):
        pass
    time.sleep(0.5)
    assert signal.getsignal(signal.SIGALRM) is handler


def test_the_guarded_process_takes_the_deadline_from_the_message(tmp_path: Path) -> None:
    message = SimpleNamespace(metadata=SimpleNamespace(ttl=0.4))
    one = app_process.OneMessage(tmp_path / "allowed.json", tmp_path / "apps")

    with pytest.raises(DeadlinePassed):
        one._within_deadline(lambda message, context: time.sleep(30), message, None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    "hangs",
    [
        "sum(range(10**15))",  # inside a library that keeps the interpreter for itself, and hears no signal
        "while True:\n        try:\n            time.sleep(60)\n        except OSError:\n            pass",  # swallows what it gets
    ],
)
def test_an_app_that_does_not_react_loses_its_process_and_says_nothing_of_its_data(hangs: str) -> None:
    code = dedent(
        """
        import time
        from client.watchdog import Deadline, within
        def secret_user_4711(name="anna"):
            HANGS
        with within(Deadline(soft_s=0.2, hard_s=0.6)):
            secret_user_4711("user-4711-anna")
        """
    ).replace("HANGS", hangs)
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("Timeout (")  # not the exception
    assert time.monotonic() - begun < 20
    assert "in secret_user_4711" in done.stderr
    assert "anna" not in done.stderr


def test_a_round_that_is_cut_off_keeps_its_debit_and_is_computed_whole_the_next_time(world: World) -> None:
    exchange(world)
    settings = world["films"]
    ended = _cut_off_after_the_intent(settings)
    assert ended == 1
    assert _kinds(settings)[-1:] == ["intent"]
    assert not settings.at_home("state").exists() or not any(settings.at_home("state").glob("snapshot-*"))

    update = rounds.train(settings, instruction(1), bundle_digest="b" * 64, code_version="0")

    assert _kinds(settings)[-3:] == ["intent", "intent", "commit"]
    assert update.receipt.count_of_intents == 2


def _cut_off_after_the_intent(settings: ClientSettings) -> int:
    """Exit code of a process whose round hangs after its debit, until the deadline ends it."""
    child = os.fork()
    if child == 0:
        original = Ledger.intent

        def hang(self: Ledger, **values: object) -> None:
            original(self, **values)  # type: ignore[arg-type]
            with within(Deadline(soft_s=0.2, hard_s=0.5)):
                while True:
                    with contextlib.suppress(OSError):
                        time.sleep(60)

        Ledger.intent = hang  # type: ignore[assignment, method-assign]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            rounds.train(settings, instruction(1), bundle_digest="b" * 64, code_version="0")
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _kinds(settings: ClientSettings) -> list[str]:
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        return [event.kind for event in ledger.events()]
