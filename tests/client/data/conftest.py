"""Servers for the tests of databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.data import postgres
from tests.client.data.postgres import Server
from tests.client.data.reading_sql import SOUND


@pytest.fixture
def orders(postgresql: Server) -> Iterator[Server]:
    """A server with a sound table `orders`."""
    postgresql.put("orders", SOUND)
    yield postgresql
    postgresql.run("DROP TABLE IF EXISTS orders CASCADE")


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that the test may stop or kill."""
    found = postgres.find()
    if found is None:
        pytest.skip(postgres.MISSING)
    with postgres.running(found) as server:
        server.run("CREATE TABLE orders AS SELECT 'u' || n AS user_id, '7' AS item_id, n AS timestamp FROM generate_series(1, 200000) AS n")
        yield server
