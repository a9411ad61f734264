"""Whole runs that were interrupted, go on, or begin from another one."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
from flwr.app import RecordDict

from server.checkpoints import Checkpoints
from server.strategy import TooFewClients
from shared import wire
from shared.errors import FederationError, RunFolderError
from tests.server.tiny_clients import intents, small_config
from tests.server.whole_runs import CONFIG, close, federate, lines, moved


class PowerCut(BaseException):
    """Ends the process as far as the code can tell: nobody catches it."""


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "trimmed-mean"])
@pytest.mark.parametrize("round", [1, 2, 3])
def test_a_run_killed_in_any_round_and_resumed_gives_the_same_layer(tmp_path: Path, strategy: str, round: int) -> None:
    config = small_config(aggregation={"strategy": strategy, "server_momentum": 0.9, "server_learning_rate": 0.5})
    whole = federate(tmp_path, config, name="whole")

    def cut(client: int, number: int, content: RecordDict) -> RecordDict:
        if (client, number) == (1, round):
            raise PowerCut
        return content

    with pytest.raises(PowerCut):
        federate(tmp_path, config, fault=cut)
    resumed = federate(tmp_path, config, resume=True)
    assert wire.layer_sha256(resumed.layer) == wire.layer_sha256(whole.layer)
    assert [line["round"] for line in lines(tmp_path)] == [1, 2, 3]
    assert [intents(tmp_path / "run-disks", client) for client in range(3)] == [3, 3, 3]  # no round was paid for twice


def test_a_crash_between_the_line_and_the_checkpoint_does_not_double_the_line(tmp_path: Path) -> None:
    whole = federate(tmp_path)
    for path in (tmp_path / "run" / "transfer_layer").glob("round-0003.*"):
        path.unlink()
    with (tmp_path / "run" / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "sec')  # ... and a line that was cut short
    resumed = federate(tmp_path, resume=True)
    assert [line["round"] for line in lines(tmp_path)] == [1, 2, 3]
    assert (resumed.run_id, wire.layer_sha256(resumed.layer)) == (whole.run_id, wire.layer_sha256(whole.layer))


def test_a_finished_run_is_only_delivered_again(tmp_path: Path) -> None:
    whole = federate(tmp_path)
    again = federate(tmp_path, resume=True)
    assert (again.run_id, wire.layer_sha256(again.layer)) == (whole.run_id, wire.layer_sha256(whole.layer))
    assert intents(tmp_path / "run-disks", 0) == 3


def test_a_resumed_run_may_go_on_with_fewer_clients(tmp_path: Path) -> None:
    with pytest.raises(TooFewClients):
        federate(tmp_path, fault=lambda c, r, content: wire.Unavailable().pack() if r == 2 else content)
    outcome = federate(tmp_path, clients=2, resume=True)
    assert close(outcome.layer, moved(0.02 + 0.015 + 0.015))


def test_a_damaged_checkpoint_is_said_and_the_run_goes_on_from_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = federate(tmp_path)
    (tmp_path / "run" / "transfer_layer" / "round-0003.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="isthmus"):
        resumed = federate(tmp_path, resume=True)
    assert "round-0003.json cannot be used" in caplog.text
    assert wire.layer_sha256(resumed.layer) == wire.layer_sha256(whole.layer)


def test_a_control_starts_in_the_space_of_another_run_with_one_client(tmp_path: Path) -> None:
    federate(tmp_path)
    start = Checkpoints(tmp_path / "run" / "transfer_layer").load(0)
    alone = small_config(aggregation={"min_clients": 1})
    outcome = federate(tmp_path, alone, clients=1, name="control", start=start)
    assert outcome.space == start.space
    assert outcome.run_id != start.run_id
    assert close(outcome.layer, moved(0.03))  # 3 rounds of .01


def test_a_control_of_another_model_is_refused(tmp_path: Path) -> None:
    federate(tmp_path)
    start = Checkpoints(tmp_path / "run" / "transfer_layer").load(0)
    with pytest.raises(FederationError, match="another model"):
        federate(tmp_path, small_config(model={"rank": 3}), name="control", start=start)


def test_a_run_is_not_resumed_under_another_configuration(tmp_path: Path) -> None:
    federate(tmp_path)
    with pytest.raises(FederationError, match="configuration is not the one"):
        federate(tmp_path, small_config(privacy={"rounds": 4}), resume=True)


def test_what_only_changes_speed_may_change_at_a_resume(tmp_path: Path) -> None:
    federate(tmp_path)
    faster = dataclasses.replace(CONFIG, compute=dataclasses.replace(CONFIG.compute, torch_threads=1))
    assert federate(tmp_path, faster, resume=True).round == 3


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    federate(tmp_path)
    with pytest.raises(RunFolderError, match="holds a run already"):
        federate(tmp_path)


def test_passports_have_their_time_once_between_the_space_and_round_one(tmp_path: Path) -> None:
    seen: list[tuple[int, list[int]]] = []
    store = Checkpoints(tmp_path / "run" / "transfer_layer")
    federate(tmp_path, before_rounds=lambda checkpoint: seen.append((checkpoint.round, store.rounds())))
    federate(tmp_path, resume=True, before_rounds=lambda checkpoint: seen.append((checkpoint.round, store.rounds())))
    assert seen == [(0, [0])]
