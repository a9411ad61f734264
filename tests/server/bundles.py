"""A bundle for tests that never run it."""

from __future__ import annotations

from shared.bundle import Bundle


def a_bundle(digest: str = "b" * 64) -> Bundle:
    return Bundle(
        digest=digest,
        size=1,
        name="isthmus",
        version="1",
        server_app="server.app:app",
        client_app="client.app:app",
        data=b"",
        contents={},
    )
