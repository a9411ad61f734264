"""What can be reached from a partner's place in the network. Started there by the deployment demo.

``python -m simulations.deployment_position CA SERVER:PORT SUPERLINK_PORT PEER...`` prints one JSON document.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import sys

CLOSED = (
    "/v1/control/start-run",
    "/v1/control/list-nodes",
    "/v1/control/register-node",
    "/v1/runtime/acquire-task",
    "/v1/fleet/register-node",
    "/",
)
"""Paths of the SuperLink that the proxy answers with 404."""
_WAIT_S = 5.0


def asked(ca: str, host: str, port: int, path: str) -> int:
    """Status of one empty POST, trusting nobody but one authority."""
    connection = http.client.HTTPSConnection(host, port, context=ssl.create_default_context(cafile=ca), timeout=_WAIT_S)
    try:
        connection.request("POST", path, body=b"")
        return connection.getresponse().status
    finally:
        connection.close()


def connects(host: str, port: int) -> str:
    """What happens to a connection: open, or the reason why not."""
    try:
        with socket.create_connection((host, port), timeout=_WAIT_S):
            return "open"
    except OSError as error:
        return error.strerror or type(error).__name__


def main(arguments: list[str]) -> None:
    ca, server, superlink_port, *peers = arguments
    host, _, port = server.rpartition(":")
    found = {
        "paths": {path: asked(ca, host, int(port), path) for path in CLOSED},
        "superlink": connects(host, int(superlink_port)),
        "peers": {peer: connects(*_split(peer)) for peer in peers},
        "world": connects("203.0.113.1", 443),
    }
    print(json.dumps(found))


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    main(sys.argv[1:])
