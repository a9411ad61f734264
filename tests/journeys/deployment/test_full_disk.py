"""No room left where a ledger lies: its partner sits rounds out and spends nothing, and takes part again once there is room."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.key_rotation import own_keys
from server.runs import State
from shared.privacy.audit import verify
from shared.privacy.findings import Status
from shared.privacy.ledger import read_events
from tests.journeys.coordinated import Coordinated
from tests.journeys.deployment.bad_days import Run, bad_day, begin, everybody_is_there, told, what_holds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

DOMAIN = "books"
ROUNDS, RESERVE = 8, 4
_BALLAST = "ballast"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of a megabyte; whether this machine gave one."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", folder], capture_output=True, check=False)
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    """To the last byte: room for an event is what must not be left."""
    with (folder / _BALLAST).open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))


def no_file_grows(ours: Coordinated, domain: str, limit: int) -> None:
    """Where no disk can be made: the kernel refuses the partner's processes every byte of a file beyond the limit, with EFBIG."""
    for pid in ours.pids(f"{ours.partners[domain].base}/"):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def events(ours: Coordinated) -> list[str]:
    settings = ours.partners[DOMAIN]
    found = verify(settings.ledger_path, key=own_keys(settings).verify_key, receipts=ours.home.receipts)
    assert found.status is Status.INTACT, found.findings
    return [event.kind for event in read_events(settings.ledger_path)]


def _two_rounds_without_it(run: Run) -> None:
    """The others go on; the ledger stands still and verifies, and the coordinator was told nothing but 'unavailable'."""
    lines = run.folder / "rounds.jsonl"
    first = run.now.round
    run.tend(lambda now: now.round >= first + 2 or not now.state.going_on)
    before = events(run.ours)
    run.tend(lambda now: now.round >= first + 3 or not now.state.going_on)
    assert events(run.ours) == before
    assert run.now.state is State.RUNNING, run.now.to_json()
    assert run.now.refused[DOMAIN].get("unavailable", 0) >= 1, lines.read_text()
    assert DOMAIN not in run.now.replies


@pytest.mark.parametrize("how", ["disk", "limit"])
def test_a_full_disk_at_a_ledger_costs_rounds_and_no_truth(tmp_path: Path, repository: Path, how: str) -> None:
    with contextlib.ExitStack() as stack:
        disk = tmp_path / "disk"
        if how == "disk" and not stack.enter_context(small_disk(disk)):
            pytest.skip("this user may not mount a tmpfs: the disk that fills up is tried by a limit on files alone")
        own = {DOMAIN: {"ledger": str(disk / "ledger.sqlite")}} if how == "disk" else {}
        ours = stack.enter_context(bad_day(tmp_path / "day", repository, own=own))
        everybody_is_there(ours)
        began = time.monotonic()
        run = begin(ours, rounds=ROUNDS, reserve=RESERVE)
        run.tend(lambda now: now.round >= 1 and DOMAIN in now.replies)

        if how == "disk":
            fill(disk)
        else:
            no_file_grows(ours, DOMAIN, 4096)
        _two_rounds_without_it(run)

        if how == "disk":
            os.unlink(disk / _BALLAST)
        else:
            no_file_grows(ours, DOMAIN, resource.RLIM_INFINITY)
        mended_in = run.now.round
        run.tend(lambda now: DOMAIN in now.replies or not now.state.going_on)
        ended = run.to_the_end()

        assert (ended.state, ended.round) == (State.FINISHED, ROUNDS)
        held = what_holds(run, reserve=RESERVE)
        print(f"\nfull by {how}, mended after round {mended_in}: {told(run, held, began)}", flush=True)
        commits, lost = held[DOMAIN]
        assert 2 <= commits <= ROUNDS - 2
        assert lost <= 1
