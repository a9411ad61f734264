"""Keeps the SuperLink's list of nodes equal to the list of enrolled partners, and says who connects and who is gone.

A process of its own beside the SuperLink: a partner who is enrolled, or removed, while everything runs is known a moment later.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.console import guarded
from shared.errors import ConfigError, FederationError, StorageError

from . import nodes as nodes_file
from .enrolment import cards
from .home import Home
from .submission import Control, Declined, Node, key_bytes

_PAUSE_S = 2.0


@dataclass(slots=True)
class Registrar:
    """One SuperLink's list.

    Args:
        home: whose partners are enrolled.
        control: of its SuperLink.
        say: is told what changed, a line each.
    """

    home: Home
    control: Control
    say: Callable[[str], None]
    _connected: dict[str, bool] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)

    def step(self) -> None:
        """Compares both lists once.

        Raises:
            FederationError: the SuperLink does not answer.
            ConfigError: a partner's card cannot be read, or something else answers in the SuperLink's place.
            StorageError: which node is whose cannot be written down.
        """
        wanted = {key_bytes(card.node_key): domain for domain, card in cards(self.home).items()}
        nodes = self.control.nodes()
        known = {node.public_key for node in nodes}
        for node in nodes:
            if wanted.get(node.public_key) != node.name:
                self.control.unregister(node.node_id)
                self._connected.pop(node.name, None)
                self.say(f"{node.name or node.node_id}: its node is no longer admitted")
        admitted = [node for node in nodes if wanted.get(node.public_key) == node.name]
        whose = {node.node_id: node.name for node in admitted}
        for key, domain in sorted(wanted.items(), key=lambda item: item[1]):
            if key not in known and (node_id := self._register(key, domain)) is not None:
                whose[node_id] = domain
        nodes_file.write(self.home.nodes_file, whose)
        self._note(admitted)

    def _register(self, key: bytes, domain: str) -> int | None:
        node_key = cards(self.home)[domain].node_key
        try:
            node_id = self.control.register(node_key, domain)
        except Declined as error:
            line = f"{domain}: its node could not be admitted: {error.what}. A key once removed is never taken again"
            if line not in self._said:
                self._said.add(line)
                self.say(line)
        else:
            self.say(f"{domain}: its node is admitted (key {key.hex()[-8:]})")
            return node_id
        return None

    def _note(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            if self._connected.get(node.name, False) != node.online:
                self.say(f"{node.name}: {'connected' if node.online else 'no longer connected'}")
            self._connected[node.name] = node.online


def keep(home: Home, say: Callable[[str], None]) -> None:
    """Compares both lists for ever; what is wrong is said once and waited out."""
    last = ""
    with Control(home.settings.superlink_address, home.ca) as control:
        registrar = Registrar(home, control, say)
        while True:
            try:
                registrar.step()
            except (FederationError, ConfigError, StorageError) as error:
                if error.what != last:
                    say(f"waiting: {error.what}")
                last = error.what
            else:
                if last != "up":
                    say("the SuperLink answers")
                last = "up"
            time.sleep(_PAUSE_S)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; `isthmus-server up` supervises it."""
    parser = argparse.ArgumentParser(prog="server.registrar", allow_abbrev=False)
    parser.add_argument("home", type=Path)
    options = parser.parse_args(arguments)
    sys.exit(guarded(lambda: keep(Home.open(options.home), lambda line: print(line, flush=True)), debug=False))


if __name__ == "__main__":
    main()
