"""Programs that are kept running: real processes that die, are killed, stay deaf, and leave others behind."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest

from shared import process_lock
from shared.errors import UsageError
from shared.supervision import LOG_BYTES, Backoff, _rotate, last_line
from tests.shared.supervised import STUBBORN, WAITS, alive, eventually, program, supervised

FORKS = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {WAITS!r}]); print('forked', flush=True); time.sleep(600)"
LEAVES = (
    "import subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-c', {WAITS!r}], start_new_session=True)\n"
    "print('left', flush=True); time.sleep(600)"
)


def test_a_program_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with supervised(tmp_path, {"one": WAITS}):
        first = eventually(lambda: program(tmp_path).get("pid"))
        os.kill(first, signal.SIGKILL)

        again = eventually(lambda: program(tmp_path) if program(tmp_path).get("pid") not in (None, first) else None)

    assert (again["starts"], again["last_code"]) == (2, -signal.SIGKILL)


def test_a_program_that_fails_at_once_is_tried_for_ever_and_its_last_words_are_kept(tmp_path: Path) -> None:
    with supervised(tmp_path, {"one": "import sys; print('Exit Code: 305'); print('still online'); sys.exit(1)"}) as process:
        seen = eventually(lambda: program(tmp_path) if program(tmp_path).get("starts", 0) >= 4 else None)
        process.send_signal(signal.SIGTERM)

        assert process.wait(20) == 0
        assert process.stderr is not None
        said = process.stderr.read()

    assert (seen["last_code"], seen["last_why"]) == (1, "still online")
    assert "one: ended with code 1; still online; started again in 0." in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_stop_it_leaves_no_process_no_record_and_no_lock(tmp_path: Path, number: int) -> None:
    with supervised(tmp_path, {"one": FORKS, "two": LEAVES}) as process:
        eventually(lambda: "forked" in _log(tmp_path, "one") and "left" in _log(tmp_path, "two"))
        assert len(alive(tmp_path)) == 5  # the supervisor, two programs, and the child of each

        process.send_signal(number)

        assert process.wait(20) == 0
        assert alive(tmp_path) == set()
        assert process_lock.running(tmp_path) is None
        assert not (tmp_path / process_lock.RECORD).exists()


def test_programs_are_stopped_in_the_reverse_of_the_order_in_which_they_were_started(tmp_path: Path) -> None:
    with supervised(tmp_path, {"one": WAITS, "two": WAITS}) as process:
        eventually(lambda: program(tmp_path, "two").get("pid"))
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        assert process.stderr is not None
        said = [line.partition(" ")[2] for line in process.stderr.read().splitlines()]

    assert [line.partition(" (")[0] for line in said] == ["one: started", "two: started", "two: is stopped", "one: is stopped"]


def test_a_program_that_does_not_listen_is_killed_after_its_time(tmp_path: Path) -> None:
    with supervised(tmp_path, {"one": STUBBORN}, stop_s=0.5) as process:
        eventually(lambda: "deaf" in _log(tmp_path))
        process.send_signal(signal.SIGTERM)

        assert process.wait(20) == 0
        assert alive(tmp_path) == set()


def test_a_second_signal_waits_for_nobody(tmp_path: Path) -> None:
    with supervised(tmp_path, {"one": STUBBORN}, stop_s=600) as process:
        eventually(lambda: "deaf" in _log(tmp_path))
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)

        assert process.wait(20) == 0
        assert alive(tmp_path) == set()


def test_a_supervisor_that_is_killed_takes_its_programs_along(tmp_path: Path) -> None:
    with supervised(tmp_path, {"one": WAITS}) as process:
        eventually(lambda: program(tmp_path).get("pid"))
        process.kill()
        process.wait()

        eventually(lambda: not alive(tmp_path))
    assert process_lock.running(tmp_path) is None


def test_what_a_killed_supervisor_left_running_is_ended_by_the_next_one(tmp_path: Path) -> None:
    with supervised(tmp_path, {"one": STUBBORN}) as process:
        eventually(lambda: "deaf" in _log(tmp_path))
        left = eventually(lambda: program(tmp_path).get("pid"))
        process.kill()
        process.wait()
        assert left in alive(tmp_path)

        with supervised(tmp_path, {"one": WAITS}):
            eventually(lambda: program(tmp_path).get("pid") not in (None, left))
            assert left not in alive(tmp_path)


def test_a_record_that_names_a_process_of_somebody_else_ends_nobody(tmp_path: Path) -> None:
    with supervised(tmp_path / "other", {"one": WAITS}):
        innocent = eventually(lambda: program(tmp_path / "other").get("pid"))
        named = {"pid": innocent, "pid_began": "another machine/1"}
        process_lock.write_record(tmp_path, {"pid": 1, "started_utc": "", "programs": {"one": named}})

        with supervised(tmp_path, {"one": WAITS}):
            eventually(lambda: program(tmp_path).get("pid"))

        assert innocent in alive(tmp_path / "other")


def test_two_at_a_time_refuse(tmp_path: Path) -> None:
    with supervised(tmp_path, {"one": WAITS}) as first, supervised(tmp_path, {"one": WAITS}) as process:
        eventually(lambda: program(tmp_path).get("pid") or process.poll() or first.poll())
        second = eventually(lambda: process if process.poll() is not None else first if first.poll() is not None else None)

        assert second.returncode == 2
        assert second.stderr is not None
        assert "the test is running already" in second.stderr.read()
        assert len(eventually(lambda: alive(tmp_path))) >= 1


def test_the_lock_says_who_holds_it(tmp_path: Path) -> None:
    assert process_lock.running(tmp_path) is None
    with process_lock.only_one(tmp_path, "the test"):
        process_lock.write_record(tmp_path, {"pid": 4711, "started_utc": "2026-11-23T10:00:00+00:00", "programs": {}})
        with (
            pytest.raises(UsageError, match=r"since 2026-11-23T10:00:00\+00:00 \(process 4711\)"),
            process_lock.only_one(tmp_path, "the test"),
        ):
            pass
        assert (process_lock.running(tmp_path) or {})["pid"] == 4711
    assert process_lock.running(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "1", "started_utc": "", "programs": {}}', b"\xff" * 100])
def test_a_damaged_record_neither_stops_a_start_nor_names_anybody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / process_lock.RECORD).write_bytes(content)

    assert process_lock.left_behind(tmp_path) is None
    with process_lock.only_one(tmp_path, "the test"):
        assert process_lock.running(tmp_path) == {"pid": 0, "started_utc": "", "programs": {}}


def test_logs_are_kept_small_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    chatty = "import time\nwhile True:\n    print('x' * 999, flush=True); time.sleep(0.0005)"
    with supervised(tmp_path, {"one": chatty}, log_bytes=200_000):
        eventually(lambda: (tmp_path / "logs/one.log.2").is_file())
        logs = sorted((tmp_path / "logs").iterdir())

        assert {stat.S_IMODE(log.stat().st_mode) for log in logs} == {0o600}
        assert stat.S_IMODE((tmp_path / "logs").stat().st_mode) == 0o700


def test_at_most_three_older_logs_stay(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    for number in range(6):
        log.write_text(f"{number}" * 10)
        _rotate(log, 10)
        assert log.read_text() == ""

    assert {path.name: path.read_text()[0] for path in tmp_path.iterdir() if path != log} == {
        "one.log.1": "5",
        "one.log.2": "4",
        "one.log.3": "3",
    }
    log.write_text("small")
    _rotate(log, LOG_BYTES)
    assert log.read_text() == "small"


def test_a_program_that_does_not_exist_is_tried_again_like_any_other(tmp_path: Path) -> None:
    from shared.supervision import Program, Supervisor

    told: list[str] = []
    missing = Program(name="one", command=[str(tmp_path / "missing")])

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    Supervisor([missing], what="the test", folder=tmp_path, logs=tmp_path, backoff=Backoff(first_s=0.05, longest_s=0.05), tell=tell).run()

    assert all("could not be started: No such file or directory" in line for line in told)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_program_waits_until_it_is_ready_to_be_started(tmp_path: Path) -> None:
    from shared.supervision import Program, Supervisor

    asked: list[int] = []
    told: list[str] = []

    def ready() -> bool:
        asked.append(len(told))
        return len(asked) >= 3

    def tell(line: str) -> None:
        told.append(line)
        if "started" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    Supervisor(
        [Program(name="one", command=["sleep", "600"], ready=ready)], what="the test", folder=tmp_path, logs=tmp_path, tell=tell
    ).run()

    assert asked == [0, 0, 0]
    assert told[0].startswith("one: started")


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_long_life() -> None:
    backoff = Backoff(first_s=1, longest_s=60)

    pauses = [backoff.pause_s(failures, 0.0) for failures in range(1, 10)]

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff.pause_s(10**9, 0.999) == pytest.approx(30.03)  # 60 * (1 - 0.999 / 2)
    assert len({backoff.pause_s(3, draw / 10) for draw in range(10)}) == 10


def test_a_program_that_lived_long_begins_anew_with_the_shortest_pause(tmp_path: Path) -> None:
    lives = "import time; time.sleep(0.4)"
    with supervised(tmp_path, {"one": lives}, backoff={"first_s": 0.1, "longest_s": 60, "settled_s": 0.2}):
        eventually(lambda: program(tmp_path).get("starts", 0) >= 6)  # doubling pauses would take 0.1 + ... + 1.6 s at most by then
    with supervised(tmp_path, {"one": ""}, backoff={"first_s": 0.1, "longest_s": 60, "settled_s": 0.2}) as process:
        time.sleep(4)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        assert process.stderr is not None
        assert 3 <= process.stderr.read().count("started again") <= 7


def test_last_words_are_the_last_line_that_says_something() -> None:
    assert last_line("first\n  second \n\n") == "second"
    assert last_line("\n") == ""


def _log(folder: Path, name: str = "one") -> str:
    path = folder / "logs" / f"{name}.log"
    return path.read_text() if path.is_file() else ""
