"""Opens what a local round needs and hands it to `client.training.local_round`, which sees nothing else of this client."""

from __future__ import annotations

import numpy as np

from shared import wire
from shared.errors import BudgetExhausted, Refusal

from .agreement import check_signature
from .canary.gradients import self_test
from .passport_exchange import for_training, own_keys, take_in_all
from .queries import CurrentRun, opened
from .settings import ClientSettings
from .state import StateFolder
from .training import local_round


def train(
    settings: ClientSettings, instruction: wire.RoundInstruction, *, bundle_digest: str, code_version: str, running: str | None = None
) -> wire.TransferUpdate:
    """Answers one round.

    Args:
        bundle_digest, code_version: written into the intent.
        running: sha256 of the bundle that runs here; None where it is not known.
    Raises:
        Refusal: the run of the last `hello` is not signed for what runs here now, or is outside of what is agreed now, or its plan and
            reserve are used up.
        StateError: the instruction belongs to another run than the last `hello`, or this installation gets per-user gradients wrong.
    """
    run = CurrentRun(settings)
    run.check(instruction.run_id)
    check_signature(settings, run.greeting(), running=running)  # a coordinator may send a round without a greeting, to other code
    settings.admit(run.config())

    def data() -> local_round.TrainingData:
        self_test(run.config())  # only where something is computed, and before anything is opened or paid
        if settings.passports.automatic and instruction.round == 1:
            take_in_all(settings, run.space_version(), dimension=run.config().model.dimension)
        return training_data(settings)

    try:
        return local_round.run(
            instruction,
            config=run.config(),
            data=data,
            domain=settings.domain,
            state_folder=StateFolder(settings.at_home("state")),
            ledger_path=settings.ledger_path,
            signer=own_keys(settings),
            bundle_digest=bundle_digest,
            code_version=code_version,
        )
    except BudgetExhausted as error:  # before data are opened: the coordinator learns that asking again is of no use
        raise Refusal("ceiling", error.what, do="This run ends here; the coordinator may begin a new one with a larger reserve.") from error


def training_data(settings: ClientSettings) -> local_round.TrainingData:
    """What training may see of this domain."""
    config, prepared = opened(settings)
    version = CurrentRun(settings).space_version()
    coordinates = prepared.coordinates(version)
    space = prepared.space(version)
    return local_round.TrainingData(
        domain=settings.domain,
        histories=prepared.training,
        coordinates=coordinates,
        passports=for_training(settings, prepared, version, config.model.dimension),
        descriptor=space.descriptor(coordinates, config.model.descriptor_dimension),
        space_version=version,
        prototypes=np.asarray(space.prototypes),
        item_tokens=prepared.item_tokens(version),
    )
