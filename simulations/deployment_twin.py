"""The run of a deployment once more, in one process: a noise-free test build has to give the same transfer layer.

Started by the deployment demo where the partners' data can be reached: ``python -m simulations.deployment_twin FOLDER RUN`` prints one JSON
document. The partners' keys, data and settings are those of the deployment; ledgers and states are new.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from client.app import build_client_app
from client.settings import ClientSettings, ServerSettings
from server.app import RUN_FILE
from server.checkpoints import Checkpoints
from shared.config import RunConfig
from shared.errors import FederationError

from . import federation
from .controls import one_of
from .partners import make_ledger
from .run_folder import RunFolder


def twin(deployed: ClientSettings, base: Path, post: Path) -> ClientSettings:
    """The same domain with a home of its own and no coordinator; passports are handed over in ``post``."""
    copied = dataclasses.replace(
        deployed,
        base=base,
        server=ServerSettings(),
        data=dataclasses.replace(
            deployed.data, password_file=deployed.data.password_file and str(deployed.path(deployed.data.password_file))
        ),
        passports=dataclasses.replace(
            deployed.passports, outbox=str(post), inbox=str(post), partners=str(deployed.path(deployed.passports.partners))
        ),
        text_cache=str(deployed.text_cache_path),
    )
    shutil.copytree(deployed.at_home("keys"), copied.at_home("keys"))
    make_ledger(copied, private=False)
    return copied


def farthest(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    """Largest difference of any coordinate of two layers.

    Raises:
        FederationError: they hold other arrays.
    """
    if {name: array.shape for name, array in left.items()} != {name: array.shape for name, array in right.items()}:
        raise FederationError("the two layers hold other arrays", do="Compare the two run folders.")
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


def main(arguments: list[str]) -> None:
    folder, run = Path(arguments[0]), Path(arguments[1])
    config = RunConfig.from_toml((run / RUN_FILE).read_text(encoding="utf-8"))
    ours = RunFolder(folder / "in-process").create(config)
    partners = [ClientSettings.read(path) for path in sorted(folder.glob("*/partner.toml"))]
    post = (ours.path / "post").absolute()
    post.mkdir()
    twins = [twin(each, (ours.clients / each.domain).absolute(), post) for each in partners]
    federation.run(config, ours, "in-process", build_client_app(functools.partial(one_of, twins)), clients=len(twins))
    layers = [Checkpoints(place).newest()[0] for place in (run / "transfer_layer", ours.transfer_layer)]
    begun = Checkpoints(run / "transfer_layer").load(0)
    document = {
        "rounds": [layer.round for layer in layers],
        "moved": farthest(begun.layer, layers[0].layer),
        "farthest": farthest(layers[0].layer, layers[1].layer),
    }
    print(json.dumps(document), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(sys.argv[1:])
