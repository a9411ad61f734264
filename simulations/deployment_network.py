"""Where the parties of the deployment demo live: each in a network namespace of its own, or all on the loopback where there are none.

::

    coordinator  192.0.2.1, and 127.0.0.1 of its own (the SuperLink)        books  198.51.100.2 --- cable --- 198.51.100.1
    films        198.51.100.6 --- cable --- 198.51.100.5                    music  198.51.100.10 -- cable --- 198.51.100.9

A cable goes from the coordinator to each partner and from nobody to the world. A partner's only route is the coordinator's public address,
and the coordinator forwards nothing, so what a partner reaches is what listens there: the proxy. The addresses are reserved for examples.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PUBLIC = "192.0.2.1"
_COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The parties' places.

    Args:
        server: address at which partners reach the coordinator.
        port, superlink_port, database_port: free ones in the place where they are used.
        addresses: of each partner, in its own place; all the same on the loopback.
        spaces: party -> name of its namespace; empty on the loopback.
        why: why there are no namespaces; empty where there are.
    """

    server: str
    port: int
    superlink_port: int
    database_port: int
    addresses: dict[str, str]
    spaces: dict[str, str]
    why: str = ""

    @property
    def apart(self) -> bool:
        """Whether each party has a network of its own."""
        return bool(self.spaces)

    def inside(self, party: str, command: Sequence[str]) -> list[str]:
        """A command line that runs at a party's place."""
        return ["ip", "netns", "exec", self.spaces[party], *command] if self.spaces else list(command)

    def processes(self) -> list[int]:
        """What still runs in one of the namespaces."""
        found = []
        for space in self.spaces.values():
            listed = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
            found += [int(word) for word in listed.stdout.split()]
        return sorted(found)


@contextlib.contextmanager
def network(partners: Sequence[str], *, apart: bool = True) -> Iterator[Network]:
    """A network for a coordinator and its partners; gone again afterwards.

    Args:
        apart: try namespaces first.
    """
    with contextlib.ExitStack() as stack:
        why = "told so"
        if apart:
            try:
                yield stack.enter_context(_namespaces(partners))
                return
            except _NotPermitted as error:
                why = str(error)
        port, superlink_port, database_port = free_ports(3)
        yield Network(
            server="127.0.0.1",
            port=port,
            superlink_port=superlink_port,
            database_port=database_port,
            addresses=dict.fromkeys(partners, "127.0.0.1"),
            spaces={},
            why=why,
        )


class _NotPermitted(Exception):
    """This machine has no namespaces for us. The text says why."""


@contextlib.contextmanager
def _namespaces(partners: Sequence[str]) -> Iterator[Network]:
    if os.geteuid() != 0:
        raise _NotPermitted("only root may make network namespaces")
    if shutil.which("ip") is None:
        raise _NotPermitted("the program 'ip' is missing (Debian: apt-get install iproute2)")
    spaces = {party: f"isthmus-{os.getpid()}-{party}" for party in (_COORDINATOR, *partners)}
    addresses = {}
    try:
        for space in spaces.values():
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
        hub = spaces[_COORDINATOR]
        _ip("-n", hub, "addr", "add", f"{PUBLIC}/32", "dev", "lo")
        _forward_nothing(hub)
        for number, partner in enumerate(partners):
            near, far = f"198.51.100.{4 * number + 1}", f"198.51.100.{4 * number + 2}"
            plug, socket_ = f"ist{os.getpid()}-{number}a", f"ist{os.getpid()}-{number}b"
            _ip("link", "add", plug, "netns", hub, "type", "veth", "peer", "name", socket_, "netns", spaces[partner])
            _ip("-n", hub, "addr", "add", f"{near}/30", "dev", plug)
            _ip("-n", hub, "link", "set", plug, "up")
            _ip("-n", spaces[partner], "addr", "add", f"{far}/30", "dev", socket_)
            _ip("-n", spaces[partner], "link", "set", socket_, "up")
            _ip("-n", spaces[partner], "route", "add", f"{PUBLIC}/32", "via", near)
            addresses[partner] = far
        yield Network(server=PUBLIC, port=8443, superlink_port=9443, database_port=5432, addresses=addresses, spaces=spaces)
    finally:
        for space in spaces.values():
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)


def _forward_nothing(space: str) -> None:
    """A namespace takes the machine's settings over; this one passes no packet on, whatever they are."""
    words = ["ip", "netns", "exec", space, "sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward; cat /proc/sys/net/ipv4/ip_forward"]
    if subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() != "0":
        raise _NotPermitted("forwarding between partners could not be switched off")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _NotPermitted(f"ip {' '.join(words[:3])}: {done.stderr.strip() or done.returncode}")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on just now."""
    found = [socket.socket() for _ in range(count)]
    try:
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in found]
    finally:
        for one in found:
            one.close()


def processes_of(folder: Path) -> list[int]:
    """Processes other than this one and its parents whose command line names a folder: what a clean stop leaves none of."""
    mine = set()
    pid = os.getpid()
    while pid > 1:
        mine.add(pid)
        with contextlib.suppress(OSError, ValueError):
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            continue
        break
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in line.read_bytes() and int(line.parent.name) not in mine:
                found.append(int(line.parent.name))
    return sorted(found)
