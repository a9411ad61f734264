"""The programs of a coordinator and their exact command lines: SuperLink, executor, registrar, and the proxy where nginx is installed.

The SuperLink listens on the loopback only: whoever reaches its port may start runs. Partners see the proxy, which shows the paths of the
Fleet API and nothing else, and the guard around the SuperLink gives each node its own messages only. Tasks are handed out to whoever knows
the executor's secret. Nothing is installed while it runs.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from shared.errors import ConfigError, UsageError
from shared.supervision import Program, last_line

from . import certificates, fleet_guard, proxy
from .home import Home

SUPERLINK, EXECUTOR, REGISTRAR, PROXY = "superlink", "executor", "registrar", "proxy"
_LOOPBACK = "127.0.0.1"
_POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
_NGINX_PLACES = ("/usr/sbin", "/usr/local/sbin", "/sbin")


def programs(home: Home, nginx: str | None) -> list[Program]:
    """What `up` keeps running, in the order in which it is started.

    Args:
        nginx: the program; None: partners have to be let in by a proxy elsewhere.
    """
    environment = environment_of(home)
    port = home.settings.superlink_port

    def superlink_listens() -> bool:
        return listens(port)

    kept = [
        Program(name=SUPERLINK, command=superlink(home), environment=environment, why=why_ended, stop_s=10),
        Program(name=EXECUTOR, command=executor(home), environment=environment, ready=superlink_listens, why=why_ended, stop_s=10),
        Program(name=REGISTRAR, command=registrar(home), environment=environment, ready=superlink_listens, stop_s=2),
    ]
    if nginx is not None:
        kept.append(Program(name=PROXY, command=proxy.command(home.root, nginx), ready=superlink_listens, stop_s=5))
    return kept


def superlink(home: Home) -> list[str]:
    """The SuperLink behind `server.fleet_guard`: TLS, nodes known by their keys, tasks for the executor alone, state that outlives it."""
    return [
        *(sys.executable, "-P", "-m", "server.fleet_guard"),
        fleet_guard.PROGRAM,
        f"--ssl-ca-certfile={home.ca}",
        f"--ssl-certfile={home.certificate}",
        f"--ssl-keyfile={home.certificate_key}",
        "--enable-supernode-auth",
        f"--host={_LOOPBACK}",
        f"--port={home.settings.superlink_port}",
        f"--database={home.superlink_state}",
        "--isolation=process",
        f"--superexec-auth-secret-file={home.superexec_secret}",
        "--disable-runtime-dependency-installation",
    ]


def executor(home: Home) -> list[str]:
    """The executor of ServerApps; each is a process of its own below it."""
    return [
        _flower("flower-superexec"),
        f"--runtime-api-address={home.settings.superlink_address}",
        f"--root-certificates={home.ca}",
        f"--superexec-auth-secret-file={home.superexec_secret}",
    ]


def registrar(home: Home) -> list[str]:
    """See `server.registrar`."""
    return [sys.executable, "-P", "-m", "server.registrar", str(home.root)]


def environment_of(home: Home) -> dict[str, str]:
    """What Flower's programs find set: a home of their own, nothing asked or told over the network, and their own siblings first."""
    return {
        "FLWR_HOME": str(home.flower),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        "COLUMNS": "200",
        _POLL: os.environ.get(_POLL, "0.2"),
    }


def forget_flower_variables() -> None:
    """Takes settings of Flower out of this process' environment: what somebody set for something else must not open a door here."""
    for name in [name for name in os.environ if name.startswith("FLWR_") and name != _POLL]:
        del os.environ[name]


def find_nginx() -> str | None:
    """The installed nginx; None where there is none. System folders are looked into too, which are not on everybody's path."""
    return shutil.which("nginx") or shutil.which("nginx", path=os.pathsep.join(_NGINX_PLACES))


def check_dates(home: Home, now: datetime | None = None) -> None:
    """Refuses to start with certificates that nobody would accept.

    Raises:
        ConfigError: one has ended or has not begun.
    """
    now = now or datetime.now(UTC)
    for path, do in ((home.certificate, "Run isthmus-server renew on this home, then start again."), (home.ca, "Make a new home.")):
        dates = certificates.validity(path)
        if now > dates.until:
            raise ConfigError(f"{path} ended on {dates.until:%Y-%m-%d}: nobody could connect", do=do)
        if now < dates.since:
            raise ConfigError(f"{path} holds from {dates.since:%Y-%m-%d %H:%M} UTC only", do="Set this machine's clock.")


def check_ports(home: Home, nginx: str | None, patience_s: float = 10.0) -> None:
    """Looks whether the ports are free.

    Args:
        patience_s: an earlier start that was killed may take a moment to let go.
    Raises:
        UsageError: naming the port that something else holds.
    """
    wanted = [(_LOOPBACK, home.settings.superlink_port, "superlink_port")]
    if nginx is not None:
        wanted += [(ip, home.settings.port, "port") for ip in home.settings.listens_on]
    until = time.monotonic() + patience_s
    for host, port, key in wanted:
        while (why := _taken(host, port)) is not None:
            if time.monotonic() > until:
                raise UsageError(
                    f"port {port} of {host} cannot be used ({why})",
                    do=f"Stop what holds it, or choose another '{key}' in {home.settings_file} and run isthmus-server init on it.",
                )
            time.sleep(0.2)


def listens(port: int) -> bool:
    """Whether something on the loopback answers at a port."""
    with socket.socket() as attempt:
        attempt.settimeout(0.5)
        return attempt.connect_ex((_LOOPBACK, port)) == 0


def why_ended(log: str) -> str:
    """What a program of Flower said about its end: its error, not the last request that it served."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and "HTTP/1.1" not in line and not line.lstrip().startswith("-----")]
    said = [line for line in lines if "ERROR" in line or "rror:" in line]
    return last_line("\n".join(said or lines))


def _taken(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind((host, port))
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _flower(name: str) -> str:
    """Flower's program beside this Python.

    Raises:
        ConfigError: it is not there.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise ConfigError(f"the program {name} is not installed beside {sys.executable}", do="Install isthmus with its constraints.txt.")
    return found
