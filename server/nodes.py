"""Which node is whose: ``superlink/nodes.json``, written by the registrar and read by ServerApps.

Flower tells a ServerApp numbers of nodes and nothing about the keys that they proved to hold. Without this file any partner could greet in
another one's name, and that one would be left out of the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .private_files import replace_file

NODES_FILE = "nodes.json"
_FORMAT = "isthmus-nodes-1"


def write(path: Path, nodes: Mapping[int, str]) -> None:
    """Keeps node -> domain; a file that says the same stays as it is.

    Raises:
        StorageError: no space left, or the folder cannot be written.
    """
    if read(path) != dict(nodes):
        kept = {str(node): domain for node, domain in sorted(nodes.items())}
        replace_file(path, (json.dumps({"format": _FORMAT, "nodes": kept}, indent=1) + "\n").encode())


def read(path: Path) -> dict[int, str] | None:
    """Node -> domain, now. None where no file was ever named; empty, so that nobody is believed, where it cannot be used or is gone."""
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != _FORMAT:
            return {}
        return {int(node): str(domain) for node, domain in dict(document["nodes"]).items()}
    except FileNotFoundError:
        return {} if path.is_symlink() else None  # a run folder's link to one that is not written yet, or was lost
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
