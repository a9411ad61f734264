"""Submitting exactly one file, and what is said where it does not run."""

from __future__ import annotations

import http.server
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import launch, watch
from server.journal import Journal, keeping
from server.run_record import RunRecord
from server.runs import State, prepare, status
from server.submission import Control
from shared import bundle as bundles
from shared.errors import ConfigError, DataError, FederationError, UsageError
from tests.journeys.coordinated import Coordinated, new_home, tiny_run
from tests.journeys.guarded_loopback import write_app
from tests.server.bundles import a_bundle


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Coordinated]:
    """A coordinator whose partners exist on paper only."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    home = new_home(tmp_path / "home")
    home.partners_file.write_text("[books]\n[films]\n")
    made = Coordinated(home=home, partners={}, bundle=a_bundle(), environment=environment)
    try:
        yield made
    finally:
        made.end()


def test_no_request_waits_for_a_connection_that_the_superlink_is_letting_go_of(tmp_path: Path) -> None:
    home, heard = new_home(tmp_path / "home"), []

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay, if nobody says otherwise

        def do_POST(self) -> None:
            heard.append((self.client_address, self.headers["connection"]))
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(home.certificate, home.certificate_key)
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        answering = threading.Thread(target=server.serve_forever, args=(0.05,))
        answering.start()
        try:
            with Control(f"localhost:{server.server_port}", home.ca) as control:
                assert (control.nodes(), control.nodes()) == ((), ())
        finally:
            server.shutdown()
            answering.join()
    assert len({address for address, _ in heard}) == 2
    assert {word for _, word in heard} == {"close"}


@pytest.mark.journey
def test_the_bytes_of_the_file_are_submitted_and_a_run_that_cannot_begin_says_why(ours: Coordinated, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", "app")
    (app / "server" / "app.py").write_text("raise ImportError('no such library')\n")
    broken = bundles.build(app)
    said: list[str] = []
    ours.command("up", ours.home.root, "--detach")
    with Control(ours.home.settings.superlink_address, ours.home.ca) as control:
        config = tiny_run(noise_multiplier=1.0)
        folder = prepare(ours.home, config, broken, expected_clients=2)
        with pytest.raises(FederationError, match="declined"):  # this app does not know the key `run`
            control.submit(broken, folder)
        (app / "pyproject.toml").write_text((app / "pyproject.toml").read_text().replace('out = ""', 'run = ""'))
        broken = bundles.build(app)
        folder = prepare(ours.home, config, broken, expected_clients=2)
        number = control.submit(broken, folder)
        assert control.run(number).bundle_digest == broken.digest
        RunRecord.read(folder).submitted(number).write(folder)
        with pytest.raises(FederationError, match=r"ended before it began.*no such library"):
            watch.follow(folder, control, said.append)
        assert status(folder).state is State.WAITING
        assert launch.stop(control, folder)  # marks it: the next run may begin
        assert status(folder).state is State.STOPPED
        assert not launch.stop(control, folder)

        bundles.save(broken, ours.home.bundles)
        (executor,) = [one["pid"] for name, one in ours.status()["programs"].items() if name == "executor"]
        os.kill(executor, signal.SIGSTOP)  # nobody takes the run
        try:
            record = launch.resume(ours.home, control, folder)
            assert len(record.attempts) == 2
            assert control.run(record.attempts[-1].flower_run).status == "pending"
            assert control.stop(record.attempts[-1].flower_run)
            assert control.run(record.attempts[-1].flower_run).finished
            assert not control.stop(record.attempts[-1].flower_run)  # it had ended
        finally:
            os.kill(executor, signal.SIGCONT)


def test_a_lost_run_and_a_failed_one_say_how_to_go_on(ours: Coordinated) -> None:
    folder = prepare(ours.home, tiny_run(noise_multiplier=1.0), a_bundle(), expected_clients=2)
    RunRecord.read(folder).submitted(7).write(folder)
    Journal(folder).append("begun", flower_run=7)
    said: list[str] = []
    with Control(ours.home.settings.superlink_address, ours.home.ca) as control:
        with pytest.raises(watch.Lost, match="0 of 2 rounds") as lost:
            watch.follow(folder, control, said.append)
        assert f"resume {ours.home.root} {folder.name}" in lost.value.do
        with pytest.raises(ConfigError), keeping(folder, 7):
            raise ConfigError("no good", do="Do better.")
        with pytest.raises(FederationError, match="ended after 0 of 2 rounds: no good"):
            watch.follow(folder, control, said.append)
        RunRecord.read(folder).stopped().write(folder)
        with pytest.raises(FederationError, match="was stopped; 0 of 2 rounds"):
            watch.follow(folder, control, said.append, seen=99)
    assert said == ["the ServerApp has begun"] * 3


def test_a_run_resumes_with_the_file_that_it_began_with_or_not_at_all(ours: Coordinated, tmp_path: Path) -> None:
    made = bundles.build(write_app(tmp_path / "app", "app"))
    kept = bundles.save(made, ours.home.bundles)
    folder = prepare(ours.home, tiny_run(noise_multiplier=1.0), made, expected_clients=2)
    Journal(folder).append("begun", flower_run=7)
    with Control(ours.home.settings.superlink_address, ours.home.ca) as control:
        kept.unlink()
        with pytest.raises(UsageError, match="no bundle"):
            launch.resume(ours.home, control, folder)
        other = bundles.build(write_app(tmp_path / "other", "other"))
        kept.write_bytes(other.data)
        with pytest.raises(DataError, match="not the bundle that its name says"):
            launch.resume(ours.home, control, folder)
        with keeping(folder, 7), pytest.raises(UsageError, match="is going on"):
            launch.resume(ours.home, control, folder)
        with pytest.raises(UsageError, match="has ended well"):
            launch.resume(ours.home, control, folder)


def test_the_bundle_is_the_only_one_or_the_one_that_is_named(ours: Coordinated, tmp_path: Path) -> None:
    one, two = (bundles.build(write_app(tmp_path / name, name)) for name in ("one", "two"))
    bundles.save(one, ours.home.bundles)
    assert launch.find_bundle(ours.home).digest == one.digest
    file = bundles.save(two, tmp_path / "elsewhere")
    assert launch.find_bundle(ours.home, str(file)).digest == two.digest
    assert (ours.home.bundles / file.name).read_bytes() == two.data  # kept, so that the run can be resumed
    with pytest.raises(UsageError, match="several bundles"):
        launch.find_bundle(ours.home)
    assert launch.find_bundle(ours.home, two.digest[:12]).digest == two.digest
    with pytest.raises(UsageError, match="no bundle 'ffff"):
        launch.find_bundle(ours.home, "ffff" * 4)


def test_without_partners_no_run_is_planned(ours: Coordinated, tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(tiny_run(noise_multiplier=1.0).to_toml())
    with pytest.raises(ConfigError, match="nobody is enrolled"):
        launch.plan(ours.home, toml, "")
