"""What the bundle guard leans on inside Flower, and the check that it is there unchanged.

Flower has no supported way to refuse a foreign bundle before it is opened, so the guard stands on private functions. They may change with
any release, silently: a guard that steps aside would let foreign code run. So the source of every module it leans on is compared with the
one it was written for, and nothing starts where one differs.

A new version of Flower is admitted by reading these modules again, running ``tests/journeys/test_foreign_bundle.py`` and writing down the
new digests.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

from shared.errors import ConfigError

VERSION = "1.41.0"
MODULES: Mapping[str, str] = MappingProxyType(
    {
        # The SuperNode: what it pulls, in which order, and what it opens of it.
        "flwr.supernode.cli.flower_supernode": "e637b07a731536a63cb3d4e7d9293fef613c425b65363c4c64840aad263de1d9",
        "flwr.supernode.start_client_internal": "d6342f743fdf768f63305b88414ae2654e9a21bda153739da19c608e8d375067",
        "flwr.supernode.fleet_http_connection": "8b90826f407ab5d30564379fd1d475f66565b87547ff612eb5672277e92a33c8",
        "flwr.supernode.nodestate.in_memory_nodestate": "b2d93c03aae06b0734dbd56a9ee7a3d5e43f8ebebc4b35e058943ff7ab01e973",
        "flwr.supercore.corestate.in_memory_corestate": "2c0455bd2fd8b5dd23daeb6a36617873ddda30faa29194bf0dfb82e7fa921f10",
        "flwr.common.serde": "a158d6bd78453b2c5a6a3f6f6c706b1c388b2035ebf6438c4ee815ed26a2068f",
        # The way from the SuperNode to the process of the app.
        "flwr.supernode.main": "cad7e371678f766c252a0e5f7e9dd2559d3c8491ba1863eff7619ca22076f182",
        "flwr.supernode.servicer.runtime.runtime_handlers": "841b531c097871eac4f5e602668df6540f10b0166dec0daa840f51597d9fd28a",
        "flwr.supercore.servicer.runtime.runtime_handlers": "64496f07ffcb4102b93cd9a1ca351aec55497967ae9537f110d0b785fae1377d",
        "flwr.supercore.superexec.run_superexec": "6b4855d76940ae0f257555b6e0e9894cc46b1ee9d5675092b0e16a5053e4b2fa",
        "flwr.supercore.superexec.plugin.base_exec_plugin": "08ee26c9a9addcac0c0c4ae54094b59ba92e8a2c8b4648e739792e8780390114",
        "flwr.supercore.superexec.executor.factory": "9b96f2a63673dca38d12812a64d2b88bdfa938b550b2088643bdd8eeb7ceefc1",
        "flwr.supercore.superexec.executor.subprocess_executor": "8fca14d06c1531f0895952719e9194a3f62e9cd0de4148a6d2cdd5cdaf051f39",
        "flwr.supercore.superexec.executor.types": "cabeeee83c44aae3c844c453079825b7b7d0eab1d24b23ede2fb4f5b59bf47e0",
        "flwr.supercore.constant": "c9cf0b41ac90fed34dbae7a06bc90f49e82fbff3815270cf62f6c2962966b3ce",
        # The process of the app: what it installs and loads, and what it says when that fails.
        "flwr.supernode.runtime.run_clientapp": "fa6612aaeda9cd398de69199b0cf264a38f72c1b9cfdc53644c8d6dab0b70eb6",
        "flwr.supercore.object_ref": "37023b5244a7e43501dae546d7cdf2242b110167451800df64918e0325d7b082",
    }
)
REPLACED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "flwr.supernode.start_client_internal": ("_pull_and_store_message", "_push_messages", "_insert_message", "start_client_internal"),
        "flwr.supernode.cli.flower_supernode": ("flower_supernode",),
        "flwr.supernode.runtime.run_clientapp": ("run_clientapp",),
        "flwr.supercore.superexec.run_superexec": ("run_superexec",),
    }
)
"""Functions that are replaced or called by name: each must still be the one that its module defines."""


def verify(expected: Mapping[str, str] = MODULES, flower: str = VERSION) -> None:
    """Compares the installed Flower with the one that the guard was written for.

    Raises:
        ConfigError: another version, a module that differs, or a function that somebody has already replaced.
    """
    try:
        found = version("flwr")
    except PackageNotFoundError:
        found = "none"
    if found != flower:
        raise _refused(f"Flower {found} is installed; the bundle guard was made for {flower}")
    for name, digest in expected.items():
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest() != digest:
            raise _refused(f"the module {name} is not the one of Flower {flower}")
    for name, functions in REPLACED.items():
        module = importlib.import_module(name)
        for function in functions:
            code = getattr(getattr(module, function, None), "__code__", None)
            if code is None or module.__file__ is None or not Path(code.co_filename).samefile(module.__file__):
                raise _refused(f"{name}.{function} was replaced by something else in this process")


def _refused(what: str) -> ConfigError:
    return ConfigError(
        f"{what}: nothing was started, because the guard could not promise that foreign code stays out",
        do=f"Install it anew: python -m pip install --force-reinstall --no-deps flwr=={VERSION}",
    )
