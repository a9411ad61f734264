"""What a node needs that no retry would bring: for `check`, for `up`, and for the guard before it starts Flower."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from shared.errors import ConfigError, DataError, IsthmusError

from .settings import ClientSettings

_LOOPBACK = "127.0.0.1"
_JOIN = "Move it away and take the coordinator's card: isthmus-client join FOLDER JOIN.json"


def check_authority(path: Path) -> None:
    """Refuses a file that holds no certificate: nobody could ever be connected to with it.

    Args:
        path: certificate of the coordinator's authority, PEM.
    Raises:
        ConfigError: it cannot be used.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=str(path))
    except OSError:  # of which an error of TLS is a kind
        raise ConfigError(f"the authority's certificate {path.name} cannot be used: it is damaged or not PEM", do=_JOIN) from None


def check_node_key(settings: ClientSettings) -> None:
    """Refuses a node's key that is not the one the coordinator was told: with another partner's, this node would pass for that partner's.

    The card that was sent says which key it is, and so does the public half beside it; where neither is there, nothing is compared.

    Raises:
        DataError: it is another key, or none.
    """
    from shared.enrolment import PartnerCard

    from .enrolling import CARD_FILE, public_node_key

    path = settings.node_key_path
    own = public_node_key(path)
    beside = path.with_name(f"{path.name}.pub")
    if beside.is_file() and beside.read_text(errors="replace").split()[:2] != own.split():
        do = "Put the right two files together again; if the key is lost, move both away: isthmus-client init makes new ones."
        raise DataError(f"the node's key '{path.name}' and '{beside.name}' beside it do not belong together", do=do)
    card = settings.base / CARD_FILE
    try:
        sent = PartnerCard.read(card) if card.is_file() else None
    except IsthmusError:  # a card that cannot be read is written anew by init, and says nothing until then
        return
    if sent is not None and sent.domain == settings.domain and sent.node_key != own:
        do = "Put this domain's own key back; if it was changed on purpose, give isthmus-client init again and send the new card."
        raise DataError(f"the node's key '{path.name}' is not the one of {CARD_FILE}, by which the coordinator knows this node", do=do)


def check_port(port: int) -> None:
    """Refuses a port of the loopback that something else holds.

    Args:
        port: ``server.port``; 0 is never taken.
    Raises:
        ConfigError: naming it.
    """
    try:
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind((_LOOPBACK, port))
    except OSError as error:
        do = "Stop what holds it, or choose another server.port in partner.toml; 0 takes a free one at each start."
        raise ConfigError(f"port {port} of {_LOOPBACK} cannot be used ({error.strerror})", do=do) from None
