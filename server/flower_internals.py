"""What the coordinator leans on inside Flower, and the check that it is there unchanged.

`flwr run` has no way to submit a file: it builds a bundle of a folder, and what it built would have to be trusted to be what partners
allowed. So `server.submission` speaks to the Control API itself, with Flower's own client. That client and the options of Flower's programs
are promised to nobody, and one option that a new version no longer reads would leave the executor's door open; so the modules are compared
with those this was written for, and nothing starts where one differs.
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
