"""How a process that is watched ends: in processes of their own, without JAX."""

import os
import signal
import subprocess
import sys
import time

import pytest

from evovit_jax.parallel import supervisor
from evovit_jax.workdir import lock

BEGINNING = """
import os, signal, sys, time
from evovit_jax.errors import UserError
from evovit_jax.parallel.supervisor import supervised
with supervised(patience=0) as child:
    child.tell(waits="waited 5 s")
"""
MEMBERS = """
child.tell(process=1, members=["process 0 of 2 (host a, pid 1)", "process 1 of 2 (host b, pid 2)"])
"""


def start(body, beginning=BEGINNING):
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return subprocess.Popen(
        [sys.executable, "-c", beginning + lines],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(body, beginning=BEGINNING):
    process = start(body, beginning)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_output_and_status_are_the_childs():
    assert run("print('a'); sys.stderr.write('b'); os.write(2, b'c'); sys.exit(143)") == (
        143,
        "a\n",
        "bc",
    )


def test_what_a_user_can_mend_is_one_line():
    assert run("raise UserError('mend it')") == (2, "", "error: mend it\n")


def test_a_bug_keeps_its_traceback():
    status, _, err = run("raise KeyError('x')")
    assert status == 1
    assert err.startswith("Traceback")
    assert err.endswith("KeyError: 'x'\n")


def test_an_abort_is_one_line_and_its_words_are_kept():
    status, _, err = run(MEMBERS.strip() + "\nos.write(2, b'E1 lost\\nF1 x: gone\\n'); os.abort()")
    assert status == supervisor.OTHER_DIED
    assert err.count("\n") == 1
    assert err.startswith("error: process 0 of 2 (host a, pid 1) died or does not answer (E1 lost")
    path = err.rpartition("(its last words: ")[2].removesuffix(")\n")
    with open(path) as file:
        assert file.read() == "E1 lost\nF1 x: gone\n"
    os.remove(path)


# The parent is late: its child runs before the parent is ready for signals.
SLOW_PARENT = """
import time
from evovit_jax.parallel import supervisor
init = supervisor.Parent.__init__
def late(*arguments):
    time.sleep(1)
    init(*arguments)
supervisor.Parent.__init__ = late
"""


@pytest.mark.parametrize("beginning", [BEGINNING, SLOW_PARENT + BEGINNING], ids=["ready", "late"])
def test_signals_reach_the_child(beginning):
    process = start(
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\nprint('ready', flush=True)\n"
        "time.sleep(60)",
        beginning,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_killed_child_kills_the_parent_and_the_other_way_round():
    assert run("os.kill(os.getpid(), signal.SIGKILL)")[0] == -signal.SIGKILL
    process = start("print(os.getpid(), flush=True)\ntime.sleep(60)")
    child = int(process.stdout.readline())
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while lock.started(child) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("process", "words", "expected"),
    [
        (0, "F1 absl::Status: UNAVAILABLE: unhealthy:\n1\nThe tasks\n\nRPC", "process 1 of 2 (b)"),
        (1, "F1 absl::Status: UNAVAILABLE: Socket closed\nAdditional x", "process 0 of 2 (a)"),
        (0, "gloo::EnforceNotMet", "process 1 of 2 (b)"),
    ],
)
def test_who_died(process, words, expected):
    facts = {"process": process, "members": ["process 0 of 2 (a)", "process 1 of 2 (b)"]}
    line = supervisor.verdict(facts, words)
    assert line.startswith(f"{expected} died or does not answer (")
    assert f"so process {process} of 2" in line
    assert "\n" not in line


def test_who_died_is_not_always_known():
    facts = {"process": 2, "members": ["process 0", "process 1", "process 2"]}
    line = supervisor.verdict(facts, "gloo::EnforceNotMet")
    assert line.startswith("another process died or does not answer (gloo::EnforceNotMet)")


def test_who_never_came():
    line = supervisor.verdict({"waits": "waited 5 s"}, "F1 absl::Status: DEADLINE_EXCEEDED: x\n\n")
    assert line == "not all processes of this run came: DEADLINE_EXCEEDED: x (waited 5 s)"
