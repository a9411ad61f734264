"""The blend for warm users is fitted once for the same prepared data, and anew for any other, or where the kept file is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client import warm_fits
from client.data.histories import Histories
from client.model.warm_head import WarmHead
from client.warm_fits import kept_or_fitted

SPACE = "space-1"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    lists = [rng.choice(12, size=4, replace=False) for _ in range(40)]
    histories = Histories(
        offsets=np.arange(0, 161, 4, dtype=np.int64), items=np.concatenate(lists).astype(np.int32), times=np.tile(np.arange(4), 40)
    )
    folder = tmp_path / "prepared"
    for name, array in {"offsets": histories.offsets, "items": histories.items, "times": histories.times}.items():
        (folder / "training").mkdir(parents=True, exist_ok=True)
        np.save(folder / "training" / f"{name}.npy", array)
    np.save(folder / "training" / "pseudonyms.npy", np.zeros((40, 16), dtype=np.uint8))
    for space in (SPACE, "space-2"):
        (folder / space).mkdir()
        np.save(folder / space / "coordinates.npy", rng.normal(size=(12, 4)).astype(np.float32))
    return folder


def blend(folder: Path, space: str = SPACE, domain: str = "films", seed: int = 1, max_history: int = 10) -> WarmHead:
    return kept_or_fitted(folder, space, domain, seed=seed, max_history=max_history)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("warm-*.npz"))


def same(first: WarmHead, second: WarmHead) -> bool:
    one, other = first.to_arrays(), second.to_arrays()
    return one.keys() == other.keys() and all(np.array_equal(array, other[name]) for name, array in one.items())


def test_the_second_time_nothing_is_fitted(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = blend(prepared)
    monkeypatch.setattr(warm_fits.warm_fit, "fit", lambda *_, **__: pytest.fail("fitted again"))

    assert same(blend(prepared), first)
    assert [path.parent for path in kept(prepared)] == [prepared / SPACE]
    assert kept(prepared)[0].stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "other", [{"space": "space-2"}, {"domain": "books"}, {"seed": 2}, {"max_history": 3}], ids=lambda other: next(iter(other))
)
def test_for_anything_else_it_is_fitted_anew(prepared: Path, other: dict[str, str | int]) -> None:
    blend(prepared)
    blend(prepared, **other)  # type: ignore[arg-type]  # one of its own arguments

    assert len(kept(prepared)) == 2


@pytest.mark.parametrize("harm", ["empty", "half", "no archive", "another archive"])
def test_a_damaged_file_is_replaced(prepared: Path, harm: str) -> None:
    first = blend(prepared)
    (path,) = kept(prepared)
    whole = path.read_bytes()
    if harm == "another archive":
        with path.open("wb") as file:
            np.savez(file, something=np.zeros(3))
    else:
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "no archive": b"none of this is an archive"}[harm])

    assert same(blend(prepared), first)
    assert path.read_bytes() == whole
