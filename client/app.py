"""The Flower ClientApp of one domain: handlers without logic, behind the egress gate.

Heavy modules are imported inside the handlers, where the gate turns any failure into the fixed reply.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from shared import wire
from shared.bundle import running_digest, source_digest
from shared.errors import ConfigError
from shared.privacy.ledger_file import confirmed

from .egress import Border, Gate
from .ledger_lookup import round_record
from .settings import ClientSettings

SettingsOf = Callable[[Context], ClientSettings]


def settings_of_node(context: Context) -> ClientSettings:
    """Settings of a deployed client: its own ``partner-toml``, given to the SuperNode by the partner; never a path from a message.

    Raises:
        ConfigError: the SuperNode was started without it.
    """
    path = context.node_config.get("partner-toml")
    if not isinstance(path, str):
        raise ConfigError(
            "this SuperNode names no partner-toml", do="Start it with --node-config 'partner-toml=\"/path/to/partner.toml\"'."
        )
    return ClientSettings.read(Path(path))


def build_client_app(settings_of: SettingsOf) -> Gate:
    """The app of any domain.

    Args:
        settings_of: finds the settings of the domain that a Flower context belongs to.
    """
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        from .queries import hello as answer

        return _reply(message, answer(settings_of(context), wire.Hello.unpack(message.content), running=running_digest()))

    @app.query("moments")
    def moments(message: Message, context: Context) -> Message:
        from .queries import moments as answer

        return _reply(message, answer(settings_of(context), wire.MomentsQuery.unpack(message.content)))

    @app.query("centroids")
    def centroids(message: Message, context: Context) -> Message:
        from .queries import prototype_centroids as answer

        return _reply(message, answer(settings_of(context), wire.CentroidsQuery.unpack(message.content)))

    @app.query("descriptor")
    def descriptor(message: Message, context: Context) -> Message:
        from .queries import descriptor as answer

        return _reply(message, answer(settings_of(context), wire.DescriptorQuery.unpack(message.content)))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        from .rounds import train as answer

        return _reply(
            message,
            answer(
                settings_of(context),
                wire.RoundInstruction.unpack(message.content),
                bundle_digest=code_digest(),
                code_version=code_version(),
                running=running_digest(),
            ),
        )

    @app.query("deliver")
    def deliver(message: Message, context: Context) -> Message:
        from .delivery import deliver as answer

        return _reply(message, answer(settings_of(context), wire.Deliver.unpack(message.content)))

    return Gate(app, border=functools.partial(_border, settings_of))


def _reply(message: Message, answer: wire.Record | wire.Status) -> Message:
    return Message(answer.pack(), reply_to=message)


def _border(settings_of: SettingsOf, context: Context) -> Border:
    from .queries import CurrentRun

    settings = settings_of(context)
    consent = settings.consent
    agreements = {
        wire.MOMENTS: consent.catalogue_moments,
        wire.CENTROIDS: consent.catalogue_centroids,
        wire.DESCRIPTOR: consent.catalogue_descriptor,
    }
    return Border(
        domain=settings.domain,
        manifest=settings.at_home("egress.jsonl"),
        ledger_lookup=functools.partial(round_record, settings.ledger_path),
        ledger_mark=functools.partial(confirmed, settings.ledger_path),
        run_config=CurrentRun(settings).config_or_none,
        shares=frozenset(kind for kind, agreed in agreements.items() if agreed),
    )


@functools.cache
def code_version() -> str:
    """Version of the installed distribution; a bundle runs without one."""
    try:
        return version("isthmus")
    except PackageNotFoundError:
        return "bundle"


def code_digest() -> str:
    """Names the code in the ledger's intents: the bundle that the partner's guard admitted, else the source files as they run here."""
    return running_digest() or _source_digest()


@functools.cache
def _source_digest() -> str:
    return source_digest(Path(__file__).parent.parent)


app = build_client_app(settings_of_node)
