"""A partner's check against a coordinator's own proxy, a real nginx: green as it is made, red where something is down."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client.server_check import check_server
from server.home import Home
from server.settings import ProxySettings, ServerSettings
from tests.server.nginx import Upstream, free_port, installed, proxy_of

pytestmark = pytest.mark.journey


def red(home: Home, ca: Path) -> dict[str, str]:
    return {line.name: line.what for line in check_server(f"localhost:{home.settings.port}", ca) if not line.ok}


def test_a_coordinator_as_it_is_made_is_green_and_what_is_down_is_named(tmp_path: Path) -> None:
    program = installed()
    settings = ServerSettings(hosts="localhost", listen="127.0.0.1", port=free_port(), superlink_port=free_port(), proxy=ProxySettings())
    home = Home.create(tmp_path / "home", settings).home
    ca = Path(shutil.copy(home.ca, tmp_path / "ca.crt"))
    assert list(red(home, ca)) == ["server"]

    with proxy_of(home, program):
        assert red(home, ca) == {"node interface": "the proxy answers 502"}
        with Upstream(home.settings.superlink_port).running(home.certificate, home.certificate_key) as upstream:
            assert red(home, ca) == {}
            assert [(path, body) for _, path, _, body in upstream.requests] == [("/v1/fleet/pull-messages", b"")]
