"""A real SuperLink with TLS and SuperNode authentication, and one guarded SuperNode, as processes on the loopback; and small apps for them.

Every process is in a group of its own and ends with the federation, whatever happened.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client import bundle_guard

BINARIES = Path(sys.executable).parent
SERVER = """
    import json, time
    from pathlib import Path
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()
    def main(grid, context):
        while not (nodes := list(grid.get_node_ids())):
            time.sleep(0.5)
        sent = [Message(RecordDict({"config": ConfigRecord({"a": 1})}), dst_node_id=node, message_type="query.hello") for node in nodes]
        replies = list(grid.send_and_receive(sent, timeout=240))
        said = [
            {"code": reply.error.code, "reason": reply.error.reason} if reply.has_error() else dict(reply.content["config"])
            for reply in replies
        ]
        Path(context.run_config["out"]).write_text(json.dumps(said))
"""
CLIENT = """
    import os
    from pathlib import Path
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    (Path(os.environ["TEST_MARKERS"]) / "NAME").write_text("the code ran")
    BODY
    app = ClientApp()

    @app.query("hello")
    def hello(message, context):
        said = ConfigRecord({"bundle": os.environ.get("ISTHMUS_BUNDLE_DIGEST", ""), "from": __file__})
        return Message(RecordDict({"config": said}), reply_to=message)
"""
PYPROJECT = """
    [project]
    name = "PROJECT"
    version = "0.1.0"
    description = "an app for a test"
    license = "Apache-2.0"

    [tool.flwr.app]
    publisher = "isthmus"
    fab-include = ["/client/**/*.py", "/server/**/*.py"]

    [tool.flwr.app.components]
    serverapp = "server.app:app"
    clientapp = "client.app:app"

    [tool.flwr.app.config]
    out = ""
"""


def write_app(folder: Path, name: str, *, body: str = "", project: str = "isthmus") -> Path:
    """An app whose client leaves a file named ``name`` among the markers as soon as it is imported."""
    files = {
        "pyproject.toml": dedent(PYPROJECT).replace("PROJECT", project),
        "client/__init__.py": "",
        "client/app.py": dedent(CLIENT).replace("NAME", name).replace("BODY", body),
        "server/__init__.py": "",
        "server/app.py": dedent(SERVER),
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def write_certificates(folder: Path) -> None:
    """An authority and a server certificate for the loopback."""
    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("ca", "server")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in keys}
    for name, key in keys.items():
        authority = name == "ca"
        builder = (
            x509.CertificateBuilder(names["ca"], names[name], key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([loopback, x509.DNSName("localhost")]), critical=False)
        certificate = builder.sign(keys["ca"], hashes.SHA384())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / f"{name}.key").write_bytes(key.private_bytes(*form))


def write_node_key(folder: Path) -> None:
    """A SuperNode's key pair in OpenSSH's form."""
    key = ec.generate_private_key(ec.SECP384R1())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    (folder / "node").write_bytes(key.private_bytes(*form))
    public = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    (folder / "node.pub").write_bytes(key.public_key().public_bytes(*public))


@dataclass
class Federation:
    """Running processes, and what a test asks of them."""

    folder: Path
    address: str
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def markers(self) -> set[str]:
        return {path.name for path in (self.folder / "markers").iterdir()}

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start(self, name: str, command: list[str], **environment: str) -> None:
        """Starts a process in a group of its own."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environment, **environment},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def start_link(self) -> None:
        """Starts the SuperLink and the executor of its ServerApps, and waits for its port."""
        folder, port = self.folder, int(self.address.rpartition(":")[2])
        tls = [
            f"--ssl-{name}={folder / file}"
            for name, file in (("ca-certfile", "ca.pem"), ("certfile", "server.pem"), ("keyfile", "server.key"))
        ]
        options = ["--enable-supernode-auth", "--host=127.0.0.1", f"--port={port}", "--disable-runtime-dependency-installation"]
        secret = ["--superexec-auth-secret-file", str(folder / "secret")]
        link = [*tls, *options, "--isolation=process", *secret, f"--database={folder}/state.db"]
        self.start("superlink", [str(BINARIES / "flower-superlink"), *link])
        self.wait(lambda: _open(port), "the SuperLink did not start")
        executor = [f"--runtime-api-address={self.address}", f"--root-certificates={folder}/ca.pem", *secret]
        self.start("executor", [str(BINARIES / "flower-superexec"), *executor])

    def wait(self, what: Callable[[], bool], why: str, seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"{why}\n" + "\n".join(self.log(name)[-3000:] for name in self.processes)
            time.sleep(0.2)

    def flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(BINARIES / "flwr"), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, app: Path) -> list[dict[str, Any]]:
        """Runs an app; what its ServerApp was answered."""
        out = self.folder / f"{app.name}.json"
        said = self.flwr("run", str(app), "test", "--stream", "--run-config", f'out="{out}"')
        self.wait(out.is_file, said, 20)
        answers: list[dict[str, Any]] = json.loads(out.read_text())
        return answers

    def refused(self) -> list[dict[str, Any]]:
        path = self.home / "refused.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def children(self) -> list[int]:
        """Ids of every process below ours that still lives, by group."""
        groups = {process.pid for process in self.processes.values()}
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                after = path.read_text().rpartition(")")[2].split()
                if int(after[2]) in groups and after[0] != "Z":
                    found.append(int(path.parent.name))
        return found

    def end(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
            for process in self.processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)


@contextlib.contextmanager
def federation(folder: Path) -> Iterator[Federation]:
    """A SuperLink and one guarded SuperNode, connected; the partner allows nothing yet."""
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLWR_")},
        "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "TEST_MARKERS": str(folder / "markers"),
        "COLUMNS": "200",
    }
    for name in ("markers", "flower"):
        (folder / name).mkdir()
    write_certificates(folder)
    write_node_key(folder)
    (folder / "secret").write_bytes(secrets.token_bytes(32))
    (folder / "partner.toml").write_text('domain = "books"\n')
    (folder / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{folder}/ca.pem"\n'
    )
    ours = Federation(folder, f"127.0.0.1:{port}", environment)
    node = bundle_guard.command(
        folder / "partner.toml", superlink=ours.address, root_certificates=folder / "ca.pem", node_key=folder / "node"
    )
    try:
        ours.start_link()
        ours.flwr("supernode", "register", str(folder / "node.pub"), "test", "--name", "books")
        ours.start("supernode", [*node, "--preload="])
        ours.wait(lambda: re.search(r"SuperNode ID: \d+", ours.log("supernode")) is not None, "the SuperNode did not connect")
        yield ours
    finally:
        ours.end()


def _open(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(1)
        return attempt.connect_ex(("127.0.0.1", port)) == 0
