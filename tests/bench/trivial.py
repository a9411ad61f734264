"""The least that Flower can do: three nodes that send back the arrays they were sent, averaged by FedAvg.

Stock programs with their defaults: SuperLink with TLS, nodes known by their keys, apps in processes of their own, started by executors that
hold a secret. Only the executors ask for tasks as often as ours do, so that the comparison owes nothing to that setting.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

from server import processes
from server.home import Home
from server.submission import Control
from shared.errors import FederationError
from tests.journeys.coordinated import Coordinated, free_ports

_PROJECT = """
[project]
name = "trivial"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"
fab-include = ["trivial_client.py", "trivial_server.py"]

[tool.flwr.app.components]
serverapp = "trivial_server:app"
clientapp = "trivial_client:app"

[tool.flwr.app.config]
rounds = 1
nodes = 1
shapes = ""
"""
_CLIENT = """
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
"""
_SERVER = """
import json

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    nodes = config["nodes"]
    arrays = ArrayRecord({str(at): Array(np.zeros(shape, np.float32)) for at, shape in enumerate(json.loads(config["shapes"]))})
    FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes).start(grid, arrays, num_rounds=config["rounds"])
"""


def write_app(folder: Path) -> Path:
    """The app's three files."""
    folder.mkdir()
    for name, text in {"pyproject.toml": _PROJECT, "trivial_client.py": _CLIENT, "trivial_server.py": _SERVER}.items():
        (folder / name).write_text(text)
    return folder


def run(ours: Coordinated, folder: Path, *, nodes: int, rounds: int, shapes: str) -> None:
    """Starts everything on a home of its own, and runs the app to its end. The caller ends the processes (`Coordinated.end`).

    Args:
        ours: a home whose certificates and command lines are used; nothing of it runs.
        folder: for the app, keys and secrets.
        shapes: of the arrays, as JSON.
    """
    environment = processes.environment_of(ours.home)
    for name, command in (("superlink", _superlink(ours.home)), ("executor", processes.executor(ours.home))):
        ours.start(name, command, **environment)
        ours.wait(lambda: processes.listens(ours.home.settings.superlink_port), "the SuperLink does not listen")
    with Control(ours.home.settings.superlink_address, ours.home.ca) as control:
        ours.wait(control.healthy, "the SuperLink does not answer")
        for number, port in enumerate(free_ports(nodes)):
            _start_node(ours, folder, control, f"node{number}", port, environment)
        ours.wait(lambda: sum(node.online for node in control.nodes()) == nodes, "not every node connected")
    (ours.home.flower / "config.toml").write_text(
        f'[superlink.here]\naddress = "{ours.home.settings.superlink_address}"\nroot-certificates = "{ours.home.ca}"\n'
    )
    config = f'rounds={rounds} nodes={nodes} shapes="{shapes}"'
    flwr = [str(Path(sys.executable).with_name("flwr")), "run", str(write_app(folder / "app")), "here", "--stream", "--run-config", config]
    done = subprocess.run(flwr, env={**ours.environment, **environment}, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0 or f"[ROUND {rounds}/{rounds}]" not in done.stdout + done.stderr:
        raise FederationError(f"the trivial app did not end well\n{done.stdout}\n{done.stderr}\n{ours.logs()}")


def _superlink(home: Home) -> list[str]:
    """Flower's own, with nothing around it."""
    return [
        str(Path(sys.executable).with_name("flower-superlink")),
        f"--ssl-ca-certfile={home.ca}",
        f"--ssl-certfile={home.certificate}",
        f"--ssl-keyfile={home.certificate_key}",
        "--enable-supernode-auth",
        "--host=127.0.0.1",
        f"--port={home.settings.superlink_port}",
        f"--database={home.superlink_state}",
        "--isolation=process",
        f"--superexec-auth-secret-file={home.superexec_secret}",
        "--disable-runtime-dependency-installation",
    ]


def _start_node(ours: Coordinated, folder: Path, control: Control, name: str, port: int, environment: dict[str, str]) -> None:
    key, secret = folder / name, folder / f"{name}.secret"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)], check=True)
    secret.touch(mode=0o600)
    secret.write_bytes(secrets.token_bytes(32))
    control.register(key.with_suffix(".pub").read_text(), name)
    programs = Path(sys.executable).parent
    traced = {**environment, "ISTHMUS_TRACE_NODE": name, "FLWR_HOME": str(folder / f"{name}.flower")}
    node = [
        str(programs / "flower-supernode"),
        f"--root-certificates={ours.home.ca}",
        f"--superlink={ours.home.settings.superlink_address}",
        f"--auth-supernode-private-key={key}",
        "--isolation=process",
        f"--superexec-auth-secret-file={secret}",
        "--host=127.0.0.1",
        f"--port={port}",
    ]
    executor = [
        str(programs / "flower-superexec"),
        f"--runtime-api-address=127.0.0.1:{port}",
        "--insecure",
        f"--superexec-auth-secret-file={secret}",
    ]
    ours.start(name, node, **traced)
    ours.wait(lambda: processes.listens(port), f"{name} does not listen")
    ours.start(f"{name}.executor", executor, **traced)
