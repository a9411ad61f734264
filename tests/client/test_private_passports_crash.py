"""The draws under kill -9: at whatever moment an export dies, what left before and what leaves afterwards are the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.passport_exchange import export
from client.preparation import prepare
from client.private_passports import DrawWitness
from client.register import Register
from tests.client.kill_anywhere import killed
from tests.client.partner_world import CONFIG, LINKED, World
from tests.client.private_world import make_private, vectors

TARGETS = ("films", "music")


def killed_exports(world: World, tmp_path: Path, *, every: int) -> tuple[list[str], dict[int, World]]:
    moments, copies = killed("drawing", make_private(world).root, tmp_path / "killed", every=every)
    return moments, {at: World(root=path, space_version=world.space_version) for at, path in copies.items()}


def in_register(world: World) -> dict[bytes, bytes]:
    with Register.of(world["books"]) as register, register.reading() as database:
        return dict(database.execute("SELECT mark, vector FROM private_draws"))


def check(world: World) -> tuple[int, bool]:
    """Finishes an export that was killed. Returns how many draws were there, and whether a file had left."""
    books = world["books"]
    left = {target: books.path("outbox") / f"books-to-{target}.passports" for target in TARGETS}
    before = {target: vectors(world, target) for target, path in left.items() if path.is_file()}
    drawn = in_register(world)
    assert len(drawn) in (0, LINKED)  # all of them or none
    assert DrawWitness(books).draws() == LINKED or not before  # nothing leaves before the witness stands
    for target in TARGETS:
        export(books, CONFIG, prepare(books, CONFIG), target, world.space_version)
    after = {target: vectors(world, target) for target in TARGETS}
    assert after["films"] == after["music"]
    assert len(after["films"]) == LINKED
    for target, vectors_before in before.items():
        assert after[target] == vectors_before
    kept = in_register(world)
    assert set(kept.values()) == set(after["films"].values())
    assert not drawn or kept == drawn
    return len(drawn), bool(before)


@pytest.mark.journey
def test_killed_at_moments_of_all_kinds_an_export_never_sends_a_second_draw(world: World, tmp_path: Path) -> None:
    _, worlds = killed_exports(world, tmp_path, every=23)
    assert len(worlds) > 10
    seen = {check(each) for each in worlds.values()}
    assert {(0, False), (LINKED, False), (LINKED, True)} <= seen  # killed before, between and after


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_before_any_statement_or_change_on_the_disk_an_export_never_sends_a_second_draw(world: World, tmp_path: Path) -> None:
    moments, worlds = killed_exports(world, tmp_path, every=1)
    assert len(worlds) == len(moments) > 100
    assert "sql COMMIT" in moments
    for each in worlds.values():
        check(each)
