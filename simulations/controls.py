"""The control `target-only`: the same model, passports, noise, steps and head, trained at each target without averaging.

Each domain runs a federation of one, from the space and the initial layer of the federated run (its checkpoint 0), on a ledger of its own.
What an interrupted run finished is not trained again.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Sequence

from flwr.app import Context

from client.app import build_client_app
from client.settings import ClientSettings
from server.checkpoints import Checkpoint, Checkpoints
from shared.config import RunConfig

from .federation import run
from .partners import make_ledger, twin
from .run_folder import RunFolder

TARGET_ONLY = "target-only"


def one_of(settings: Sequence[ClientSettings], context: Context) -> ClientSettings:
    """The settings that belong to a Flower partition; partitions are numbered in the order of the domains' names."""
    return settings[int(context.node_config["partition-id"])]


def target_only(
    folder: RunFolder, config: RunConfig, settings: Sequence[ClientSettings], progress: Callable[[str, int, int], None]
) -> list[ClientSettings]:
    """Trains every domain alone. Returns the settings of the twins, in the same order."""
    start = Checkpoints(folder.transfer_layer).load(0)
    return [_alone(folder, config, one, start, progress) for one in settings]


def _alone(
    folder: RunFolder, config: RunConfig, settings: ClientSettings, start: Checkpoint, progress: Callable[[str, int, int], None]
) -> ClientSettings:
    alone = dataclasses.replace(config, aggregation=dataclasses.replace(config.aggregation, strategy="fedavg", min_clients=1))
    control = RunFolder(folder.path / "controls" / TARGET_ONLY / settings.domain)
    home = control.client(settings.domain)
    if (home / "partner.toml").is_file():  # written last: an interrupted run got this far, and goes on
        copy = ClientSettings.read(home / "partner.toml")
    else:
        shutil.rmtree(control.path, ignore_errors=True)
        control.create(alone)
        copy = twin(settings, home, folder.ledgers / TARGET_ONLY / f"{settings.domain}.sqlite")
    make_ledger(copy, private=config.privacy.private)
    app = build_client_app(functools.partial(one_of, [copy]))
    begun = bool(Checkpoints(control.transfer_layer).rounds())
    run(alone, control, "in-process", app, resume=begun, clients=1, start=None if begun else start, progress=progress)
    return copy
