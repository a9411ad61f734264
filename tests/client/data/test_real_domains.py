"""The development data sets, where they are at hand: read whole, nothing dropped, and the figures of their page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from client.data.catalogue import read_catalogue
from client.data.histories import by_user
from client.data.sources import read


@pytest.mark.parametrize(
    ("name", "domain", "users", "items", "rows"),
    [
        ("amazon3", "food", 6_188, 7_576, 73_021),
        ("amazon3", "kitchen", 7_057, 15_741, 88_674),
        ("amazon3", "beauty", 3_988, 7_776, 45_374),
        ("arts_office", "arts", 9_577, 18_127, 97_028),
        ("arts_office", "office", 9_565, 15_298, 85_357),
    ],
)
def test_a_real_domain_is_read_whole(data_set: Callable[[str], Path], name: str, domain: str, users: int, items: int, rows: int) -> None:
    folder = data_set(name) / domain
    catalogue = read_catalogue(folder / "items.csv")
    result = read(
        folder / "interactions.csv", catalogue=catalogue, pseudonym_key=bytes(32), time="order" if name == "arts_office" else "unix_s"
    )
    histories = by_user(result.interactions)
    assert (len(catalogue), catalogue.n_without_text) == (items, 0)
    assert (result.report.n_users, result.report.n_kept, result.report.n_rows) == (users, rows, rows)
    assert (histories.n_users, len(histories.items)) == (users, rows)
