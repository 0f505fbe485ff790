"""Who died: companions of processes that are played by the test, on one host."""

import json
import subprocess
import sys

import pytest

from evovit_jax.parallel import companion

# Plays a process: starts its companion, then does what the test says, a line at a time.
PROCESS = """
import json, os, subprocess, sys, time
side = subprocess.Popen([sys.executable, "-I", "-S", sys.argv[1], sys.argv[2]],
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
if json.loads(sys.argv[2])["hub"] is None:
    print(side.stdout.readline().decode().strip(), flush=True)
for line in sys.stdin:
    if line.startswith("die"):
        os._exit(9)
    if line.startswith("leave"):
        side.stdin.write(b'{"event": "done"}\\n'); side.stdin.flush()
        os._exit(0)
    if line.startswith("fail"):
        side.stdin.write(json.dumps({"event": "failed", "why": "no data", "status": 2}).encode()
                         + b"\\n"); side.stdin.flush()
    if line.startswith("wait"):
        told = side.stdout.readline()
        os._exit(int(told.split()[1]))
"""


class Played:
    """A process that is not really one of a run."""

    def __init__(self, index, count, hub):
        me = {"process": index, "count": count, "host": f"h{index}", "pid": 100 + index}
        given = json.dumps({"me": me, "token": "t", "hub": hub})
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, companion.__file__, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def do(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()

    def end(self):
        """Its status, and what it and its companion said, once both are gone."""
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


def play(count):
    first = Played(0, count, None)
    port = int(first.process.stdout.readline())
    return [first, *(Played(i, count, ["127.0.0.1", port]) for i in range(1, count))]


@pytest.mark.parametrize("victim", [0, 2])
def test_the_others_end_and_say_who_died(victim):
    members = play(3)
    for i, member in enumerate(members):
        if i != victim:
            member.do("wait")
    members[victim].do("die")
    who = f"error: process {victim} of 3 (host h{victim}, pid {100 + victim}) died; so this process"
    for i, member in enumerate(members):
        status, err = member.end()
        assert status == (9 if i == victim else companion.PEER_DIED)
        assert err.startswith(who) == (i != victim), err


def test_what_a_user_can_mend_ends_all_for_good():
    members = play(2)
    members[0].do("wait")
    members[1].do("fail")
    members[1].do("wait")
    assert members[0].end() == (2, "error: process 1 of 2 (host h1, pid 101) failed: no data\n")
    assert members[1].end() == (2, "")


def test_nobody_is_told_when_all_are_done():
    members = play(2)
    members[0].do("leave")
    members[1].do("leave")
    assert [member.end() for member in members] == [(0, ""), (0, "")]


def lost(index, event, **more):
    return {"event": event, "process": index, "count": 4, "host": "a", "pid": index, **more}


def test_the_verdict_names_the_first_and_what_followed():
    found = companion.judge([lost(3, "died"), lost(0, "died")])
    assert found["line"].startswith(
        "process 3 of 4 (host a, pid 3) died, and after it process 0 of 4 (host a, pid 0);"
    )
    assert found["status"] == 75
    assert "has not answered for 25 s" in companion.judge([lost(1, "silent")])["line"]
    failed = companion.judge([lost(1, "failed", why="XlaRuntimeError: x", status=1)])
    assert "failed: XlaRuntimeError: x; so this" in failed["line"]
    assert failed["status"] == 75


def test_a_silent_host_is_lost(monkeypatch):
    monkeypatch.setattr(companion.Companion, "__init__", lambda self, me: setattr(self, "me", me))
    hub = companion.Hub.__new__(companion.Hub)
    companion.Companion.__init__(hub, {"process": 0})
    line = companion.Line(None)
    line.who = lost(1, "here")
    line.heard -= companion.SILENCE + 1
    hub.lines, hub.waiting, hub.lost, hub.since, hub.done = [line], {0, 1}, [], 0.0, False
    hub.look()
    assert [(m["process"], m["event"]) for m in hub.lost] == [(1, "silent")]
