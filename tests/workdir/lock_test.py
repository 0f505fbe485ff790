"""One run at a time in a work directory."""

import json
import os
import subprocess
import sys

import pytest
from etils import epath
from hostile_files import irregular, not_for_ever

from evovit_jax.errors import UserError
from evovit_jax.workdir import lock, remote

TAKEN = []
HOLDS = """
import sys, time
from etils import epath
from evovit_jax.workdir import lock
with lock.held(epath.Path(sys.argv[1])):
    print("taken", flush=True)
    time.sleep(60)
"""


class Clock:
    """Time that passes while somebody waits; `beats` is what another run does in it."""

    def __init__(self, beats=lambda: None):
        self.passed, self.beats = 0.0, beats

    def __call__(self, seconds):
        self.passed += seconds
        self.beats()


def take(path, clock):
    """A lock that is let go at the end of the test."""
    taken = lock.Lock(epath.Path(path), clock)
    TAKEN.append(taken)
    taken.take()
    return taken


@pytest.fixture(autouse=True)
def release():
    yield
    while TAKEN:
        TAKEN.pop().release()


def owner(path):
    return json.loads((path / lock.FILE).read_text())


def left(path, **facts):
    """A lock that another run has left or holds."""
    path.mkdir(exist_ok=True)
    theirs = {"token": "t", "host": "far", "pid": 7, "machine": "far", "since": "noon", "beat": 1}
    (path / lock.FILE).write_text(json.dumps(theirs | facts))


def test_it_is_there_while_it_is_held(tmp_path):
    with lock.held(epath.Path(tmp_path / "run")):
        assert owner(tmp_path / "run")["host"] == lock.socket.gethostname()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "taken\n"
        message = rf"in use by process {first.pid} on host .* since .* UTC; wait for that run, or"
        with pytest.raises(UserError, match=message):
            take(tmp_path, Clock())
    finally:
        first.kill()
    first.communicate(timeout=60)
    clock = Clock()
    second = take(tmp_path, clock)
    assert owner(tmp_path)["token"] == second.mine["token"]
    assert clock.passed <= lock.SETTLED


def test_a_later_process_of_the_same_number_is_another(tmp_path):
    mine = lock.Lock(epath.Path(tmp_path)).mine
    left(tmp_path, machine=mine["machine"], pid=mine["pid"], started="1")
    take(tmp_path, Clock())
    left(tmp_path, machine=mine["machine"], pid=mine["pid"], started=mine["started"])
    with pytest.raises(UserError, match="in use"):
        take(tmp_path, Clock())


def test_a_silent_run_of_another_host_is_replaced(tmp_path, capsys):
    left(tmp_path)
    clock = Clock()
    take(tmp_path, clock)
    assert lock.SILENCE <= clock.passed <= lock.SILENCE + 2
    assert "process 7 on host far was in" in capsys.readouterr().out


def test_a_beating_run_of_another_host_is_not(tmp_path):
    left(tmp_path)
    clock = Clock(lambda: clock.passed > 9 and left(tmp_path, beat=2))
    with pytest.raises(UserError, match="in use by process 7 on host far since noon"):
        take(tmp_path, clock)
    assert clock.passed < lock.SILENCE


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]"])
def test_what_a_kill_cut_short_is_replaced(tmp_path, content):
    (tmp_path / lock.FILE).write_bytes(content)
    taken = take(tmp_path, Clock())
    assert owner(tmp_path) == taken.mine


def test_two_that_start_at_once_in_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "is_remote", lambda path: True)
    second = lock.Lock(epath.Path(tmp_path), Clock())
    first = lock.Lock(epath.Path(tmp_path), Clock(second._write))  # it writes a moment later
    with pytest.raises(UserError, match="in use"):
        first.take()
    first.release()
    assert owner(tmp_path) == second.mine


def test_beats_go_on_and_a_lost_lock_ends_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    ended = []
    taken = lock.Lock(epath.Path(tmp_path))

    def end(status):
        ended.append(status)
        taken._released.set()

    monkeypatch.setattr(lock.os, "_exit", end)
    taken.take()
    while owner(tmp_path)["beat"] < 3:
        pass
    left(tmp_path)
    while not ended:
        left(tmp_path)  # a beat may have been on its way
    assert ended == [2]
    assert "in use by process 7 on host far" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the work directory .* cannot be written"):
        lock.Lock(epath.Path(tmp_path / "file" / "run")).take()


def test_processes_that_see_other_places(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SETTLED", 0)
    left(tmp_path)
    monkeypatch.setattr(lock.agreement, "from_first", lambda value: "process 0's token")
    with pytest.raises(UserError, match=r"on host .* is not process 0's"):
        lock._check_shared(epath.Path(tmp_path), None)


def test_a_disk_that_is_full_leaves_no_file_of_the_lock(tmp_path, monkeypatch):
    taken = take(tmp_path, Clock())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        taken._write()
    assert [path.name for path in tmp_path.iterdir()] == [lock.FILE]


@pytest.mark.parametrize("kind", ["pipe", "huge"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    os.replace(irregular(tmp_path, kind), tmp_path / lock.FILE)
    with not_for_ever(), pytest.raises(UserError, match=r"no regular file|more than 64"):
        take(tmp_path, Clock())


@pytest.mark.parametrize("pid", [0, -1, 10**30, "7", 7.5, None, True, [1]])
def test_what_is_no_process_does_not_live(tmp_path, pid):
    mine = lock.Lock(epath.Path(tmp_path)).mine
    left(tmp_path, machine=mine["machine"], pid=pid)
    take(tmp_path, Clock())


def test_a_lock_that_is_nested_too_deeply_is_none(tmp_path):
    (tmp_path / lock.FILE).write_text("[" * 100_000)
    take(tmp_path, Clock())
