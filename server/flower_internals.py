"""What the coordinator leans on inside Flower, and the check that it is there unchanged.

`flwr run` has no way to submit a file: it builds a bundle of a folder, and what it built would have to be trusted to be what partners
allowed. So `server.submission` speaks to the Control API itself, with Flower's own client. That client and the options of Flower's programs
are promised to nobody, and one option that a new version no longer reads would leave the executor's door open. `server.fleet_guard` stands
inside Flower's SuperLink. So the modules are compared with those this was written for, and nothing starts where one differs.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

from shared.errors import ConfigError

VERSION = "1.41.0"
MODULES: Mapping[str, str] = MappingProxyType(
    {
        # Submitting: the client of the Control API, and what the server does with a bundle.
        "flwr.supercore.control.control_http_client": "e5111a5314d49b15fff0b56355b720881be04de69ce27c73ec2512e75b82bac5",
        "flwr.supercore.protobuf.client": "0bb91b4a9336b8cce9cdbcf02f1e31cb81c6f640aa3ee567e728621cf78f9c69",
        "flwr.superlink.servicer.control.control_handlers": "dfadaecee8ff2fb6ea824f950b7540d3d4a142936d41abf211b64f0cacc3e1f7",
        # What a node may ask, who it is then, and where the guard of the Fleet interface looks up whose message something belongs to.
        "flwr.superlink.main": "3e94714b6f1433fdf74d9e640bc96cf92e5a62bd61216ddb5c18a306c8052920",
        "flwr.superlink.routers.fleet.router": "98ce9e07f1cb48149d3d86fcd8a320f8bb460358745378493afb49d9778928a1",
        "flwr.superlink.routers.fleet.node_auth": "8646e6bfd8e5b47d062a03c824d1609ae1897c3e71f97b028be1381cd23b3255",
        "flwr.superlink.servicer.fleet.fleet_handlers": "117665fa865c30dccc5a21b7c5b099e101ae481870513f0a9242fd292ff1b18c",
        "flwr.supercore.protobuf.translation": "7ae0363b45548d07c5e83b76a98d5786bb9c2ae036b8ca46c1e08ef1e1c28973",
        "flwr.server.superlink.linkstate.sql_linkstate": "13ffbda489594bf716d2e3fb5755f88333f510fde16bfd62d30476870b5735c2",
        "flwr.supercore.corestate.sql_corestate": "14f5c7e10a150cd289fb825c966aeb4d27e325be75ccca8bca2cffd284d58560",
        "flwr.supercore.object_store.sql_object_store": "7f8942a607e4e0bc4e30dd8e4e7de00a3046492b652d35f0179fa0f56a57e08a",
        "flwr.supercore.state.schema.linkstate_models": "8d5b62e2733b28dec84af415da67905ed5e57b107db0e04656c87fefc95b4efe",
        # How the ServerApp fetches replies, and what it waits for.
        "flwr.superlink.grid.http_grid": "0c33918af5016310ba84ad42643944d498bbf5ebdb55d62f4655ee00e94d72db",
        "flwr.supercore.inflatable.inflatable_utils": "077b26d921aa86389f0a9e16bab761bd10525ec66d6f175b56fdf4bac7872d40",
        # The programs: the options that close the SuperLink, and the way from the executor to the ServerApp.
        "flwr.superlink.cli.flower_superlink": "53a0528b289cbb7b2e48e3ad9ae4373bd2dfaac34050ccb94db7db3f35e8e742",
        "flwr.supercore.cli.flower_superexec": "1fae6c298bca26a7a8b478a48a33f6125c15c08503bd609cdf2075a0e298cbbd",
        "flwr.supercore.superexec.run_superexec": "6b4855d76940ae0f257555b6e0e9894cc46b1ee9d5675092b0e16a5053e4b2fa",
        "flwr.supercore.superexec.executor.subprocess_executor": "8fca14d06c1531f0895952719e9194a3f62e9cd0de4148a6d2cdd5cdaf051f39",
        "flwr.supercore.auth.superexec": "3d18afe41c5198cf35f4813168541dabb174b44dee24565b96dd457fe662220b",
        "flwr.superlink.runtime.run_serverapp": "57f08c24d5d4fd00e2003079dc59f7e6a348bd7f68b9df6c270a243c9df5b3f7",
    }
)


def verify(expected: Mapping[str, str] = MODULES, flower: str = VERSION) -> None:
    """Compares the installed Flower with the one that this was written for.

    Raises:
        ConfigError: another version, or a module that differs.
    """
    try:
        found = version("flwr")
    except PackageNotFoundError:
        found = "none"
    if found != flower:
        raise _refused(f"Flower {found} is installed; isthmus-server was made for {flower}")
    for name, digest in expected.items():
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest() != digest:
            raise _refused(f"the module {name} is not the one of Flower {flower}")


def _refused(what: str) -> ConfigError:
    return ConfigError(
        f"{what}: nothing was started, because nobody knows what it would let in",
        do=f"Install it anew: python -m pip install --force-reinstall --no-deps flwr=={VERSION}",
    )
