"""Erasure under kill -9: the mark is first, and the next call finishes what the one before began."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from client.forgetting import finish, forget
from client.live_profiles import LIKED, LiveProfiles
from client.passport_exchange import partners
from client.preparation import prepare
from client.register import Register, marks_of
from client.serving_state import ServingFolder
from shared.errors import StateError
from tests.client.kill_anywhere import killed
from tests.client.partner_world import CONFIG, LINKED, World, link_id, people
from tests.client.test_forgetting import pseudonym_of, traces, utf32

GONE, OTHER = "p003", "p004"
STEPS = ["mark", "notices", "outbox", "inbox", "register", "table", "live", "prepared", "serving", "finished"]


def killed_erasures(finished: World, tmp_path: Path, *, every: int) -> tuple[list[str], dict[int, World]]:
    world = World(root=tmp_path / "observed", space_version=finished.space_version)
    shutil.copytree(finished.root, world.root)
    with contextlib.closing(LiveProfiles.of(world["books"])) as live:
        for user in (GONE, OTHER):
            live.observe(user, f"taken-by-{user}", LIKED)
    moments, copies = killed("forgetting", world.root, tmp_path, every=every)
    return moments, {at: World(root=path, space_version=finished.space_version) for at, path in copies.items()}


def check(world: World, whole: World, *, marked: bool, call: str) -> None:
    """A second call leaves what a call that nobody interrupted leaves."""
    settings = world["books"]
    ledger = settings.ledger_path.read_bytes()
    if marked:
        assert len(marks_of(settings)) == 1  # whoever trains before the second call does so without the user
    if call == "finish" and marked:
        finish(settings)
    else:
        forget(settings, [GONE])
    with contextlib.closing(LiveProfiles.of(settings)) as live:
        assert live.of_user(OTHER).items == (f"taken-by-{OTHER}",)
    needles = [GONE.encode(), link_id(GONE).encode(), utf32(link_id(GONE))]
    assert traces(settings, *needles) == []
    assert traces(settings, pseudonym_of(settings, GONE)) == ["home/register.sqlite"]
    assert settings.ledger_path.read_bytes() == ledger
    with Register.of(settings) as register:
        assert not register.is_unfinished()
        assert len(register.exported("films").link_ids) == LINKED - 1
    assert not (settings.path("outbox") / "books-to-films.passports").exists()
    assert len(list(settings.path("outbox").glob("books-to-films-*.erasure"))) == 1
    assert set(partners(settings)) == {"films"}
    assert len(prepare(settings, CONFIG).everyone) == len(people("books")) - 1
    mine, theirs = (ServingFolder(each["books"].at_home("serving")).current() for each in (world, whole))
    assert mine is not None
    assert theirs is not None
    for name, array in theirs.arrays.items():
        np.testing.assert_array_equal(mine.arrays[name], array, err_msg=name)
    hidden = [path.name for path in settings.at_home("").rglob(".*") if path.name != ".lock"]
    assert [name for name in hidden if name.endswith((".gone", "-deleted"))] == []


@pytest.mark.journey
def test_killed_at_each_step_the_next_call_finishes(finished: World, tmp_path: Path) -> None:
    moments, worlds = killed_erasures(finished, tmp_path, every=10_000)
    assert [what.removeprefix("step ") for what in moments if what.startswith("step")] == STEPS
    whole = World(root=tmp_path / "whole", space_version=finished.space_version)
    first = moments.index("step notices")  # until here the mark may be missing
    steps = [at for at in sorted(worlds) if moments[at].startswith("step")]
    assert len(steps) == len(STEPS)
    for number, at in enumerate(steps):
        check(worlds[at], whole, marked=at >= first, call=("finish", "forget")[number % 2])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_before_any_change_on_the_disk_the_next_call_finishes(finished: World, tmp_path: Path) -> None:
    moments, worlds = killed_erasures(finished, tmp_path, every=1)
    assert len(worlds) == len(moments) > 50
    whole = World(root=tmp_path / "whole", space_version=finished.space_version)
    for at, world in worlds.items():
        check(world, whole, marked=at >= moments.index("step notices"), call="forget")


def test_a_register_restored_from_before_the_mark_stops_training(done: World) -> None:
    settings = done["books"]
    before = settings.at_home("register.sqlite").read_bytes()
    forget(settings, [GONE])
    settings.at_home("register.sqlite").write_bytes(before)
    with pytest.raises(StateError, match="fewer marks"):
        prepare(settings, CONFIG)
