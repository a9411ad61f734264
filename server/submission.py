"""Speaking to the SuperLink's Control API: who is registered and connected, and a run of exactly the bundle file that partners allowed.

The Control API asks nobody who they are; it is bound to the loopback, and the proxy does not show it. See `server.flower_internals` for why
this does not go through `flwr run`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from shared.errors import ConfigError, FederationError

if TYPE_CHECKING:
    import httpx
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext

    from shared.bundle import Bundle

ONLINE, UNREGISTERED = "online", "unregistered"
_FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A SuperNode that the SuperLink knows. ``status`` is registered, online, offline or unregistered."""

    node_id: int
    name: str
    status: str
    public_key: bytes

    @property
    def online(self) -> bool:
        return self.status == ONLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerRun:
    """A run as Flower sees it: ``status`` is pending, starting, running or finished:WHAT."""

    run_id: int
    status: str
    details: str
    bundle_digest: str

    @property
    def finished(self) -> bool:
        return self.status.startswith(_FINISHED)


class Control:
    """The Control API of one SuperLink; a context manager.

    Args:
        address: ``HOST:PORT`` on the loopback.
        ca: certificate of the coordinator's own authority, the only one that is trusted.
    """

    def __init__(self, address: str, ca: Path) -> None:
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        self._address = address
        around: tuple[ProtobufClientInterceptor, ...] = (RuntimeVersionHttpInterceptor("isthmus-server"), _OwnConnection())
        try:
            self._client: ControlHttpClient = ControlHttpClient.from_server_address(
                address, insecure=False, root_certificates=ca.read_bytes(), interceptors=around
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"{ca} is no certificate that can be used ({type(error).__name__})", do="Restore it from a copy.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def healthy(self) -> bool:
        """Whether the SuperLink answers.

        Raises:
            ConfigError: something answers that does not hold a certificate of this authority, or one that ended.
        """
        from flwr.proto.control_pb2 import ListNodesRequest

        try:
            with self._asked():
                self._client.ListNodes(ListNodesRequest())
        except FederationError:
            return False
        return True

    def nodes(self) -> tuple[Node, ...]:
        """SuperNodes that are registered, by name."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._asked():
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        nodes = (Node(node_id=one.node_id, name=one.name, status=one.status, public_key=one.public_key) for one in found)
        return tuple(sorted((one for one in nodes if one.status != UNREGISTERED), key=lambda one: (one.name, one.node_id)))

    def register(self, node_key: str, name: str) -> int:
        """Admits a SuperNode.

        Args:
            node_key: public key as OpenSSH writes it.
            name: the domain.
        Returns:
            The node's id.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with self._asked():
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=key_bytes(node_key), name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Turns a SuperNode away from now on."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with self._asked():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def submit(self, bundle: Bundle, run: Path) -> int:
        """Starts a run of a bundle, byte for byte.

        Args:
            bundle: as it was read from its file.
            run: the run folder, on the ServerApp's host.
        Returns:
            Flower's number of the run.
        Raises:
            FederationError: the SuperLink does not answer, declines, or keeps other bytes than it was given (the run is stopped then).
        """
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        with self._asked():
            answer = self._client.StartRun(
                StartRunRequest(
                    fab=fab_to_proto(Fab(bundle.digest, bundle.data, {})), override_config=user_config_to_proto({"run": str(run)})
                )
            )
        if not answer.HasField("run_id"):
            raise FederationError("the SuperLink did not take the bundle", do="Look at HOME/logs/superlink.log.")
        run_id = int(answer.run_id)
        if self.run(run_id).bundle_digest != bundle.digest:
            self.stop(run_id)
            raise FederationError("the SuperLink holds another bundle than the one that was submitted: the run was stopped")
        return run_id

    def run(self, run_id: int) -> FlowerRun:
        """A run as Flower sees it."""
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._asked():
            one = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id]
        status = f"{one.status.status}:{one.status.sub_status}" if one.status.sub_status else one.status.status
        return FlowerRun(run_id=run_id, status=status, details=one.status.details, bundle_digest=one.fab_hash)

    def stop(self, run_id: int) -> bool:
        """Stops a run; False where it had ended already, or is not known."""
        from flwr.proto.control_pb2 import StopRunRequest

        try:
            with self._asked():
                return bool(self._client.StopRun(StopRunRequest(run_id=run_id)).success)
        except Declined:
            return False

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Turns what goes wrong on the way into errors that say what to do."""
        import httpx

        try:
            yield
        except httpx.HTTPStatusError as error:
            raise Declined(_reason(error.response), do="Look at HOME/logs/superlink.log.") from None
        except httpx.HTTPError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ConfigError(
                    f"what answers at {self._address} does not prove to be this coordinator's SuperLink: {_why(str(error))}",
                    do="Where the certificate has ended: isthmus-server renew HOME, then start again. Else look at who holds the port.",
                ) from None
            raise FederationError(
                f"the SuperLink at {self._address} does not answer",
                do="Start it with isthmus-server up HOME, or look at HOME/logs/superlink.log.",
            ) from None


class _OwnConnection:
    """Gives each request a connection of its own.

    Client and server both let go of an idle connection after 5 s: a request that begins at that moment is lost, and nobody knows whether it
    was heard. The start of a run must not be sent twice.
    """

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers["connection"] = "close"
        return call_next(context)


class Declined(FederationError):
    """The SuperLink answered, and said no."""


def key_bytes(node_key: str) -> bytes:
    """A node's public key in the form in which Flower keeps it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    key = serialization.load_ssh_public_key(node_key.encode("ascii"))
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("a node's key is not on an elliptic curve", do="Have the partner enrol again.")
    return public_key_to_bytes(key)


def _reason(response: httpx.Response) -> str:
    from flwr.supercore.error import FlowerError

    known = FlowerError.from_json(response.text)
    return f"the SuperLink declined: {known.message}" if known else f"the SuperLink answered with HTTP {response.status_code}"


def _why(text: str) -> str:
    """OpenSSL's own words, without what stands around them."""
    return text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or "its certificate does not hold"
