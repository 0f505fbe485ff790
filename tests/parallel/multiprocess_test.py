"""Two processes of two devices each: they train as one does, stop together, and notice a death."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny import tiny_flags

from evovit_jax.parallel import companion, preemption
from evovit_jax.workdir import checkpoints, metrics

pytestmark = pytest.mark.slow

# Parameters are split, everything random is on, and the program changes on the way.
TRAINING = {
    "mesh.fsdp": 2,
    "total_steps": 40,
    "layer_to_stage_steps": 30,
    "checkpoint_steps": 1000,
    "eval_steps": 1000,
    "log_steps": 1,
    "model.drop_path_rate": 0.2,
    "augment.mixup": 0.8,
    "augment.erasing_prob": 0.25,
}


class Processes:
    """`main` on several processes of this machine; what they print goes to files."""

    def __init__(self, logs, workdir, count, devices, **fields):
        flags = [f"--config.{name}={value}" for name, value in {**TRAINING, **fields}.items()]
        command = [sys.executable, "-m", "evovit_jax.main", *tiny_flags(), *flags]
        logs.mkdir(exist_ok=True)
        self.logs = [logs / str(i) for i in range(count)]
        self.running = []
        port = free_port()
        for i, log in enumerate(self.logs):
            environ = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1"}
            if count > 1:
                environ["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
                environ["JAX_NUM_PROCESSES"], environ["JAX_PROCESS_ID"] = str(count), str(i)
            with log.open("w") as out:
                self.running.append(
                    subprocess.Popen(
                        [*command, f"--workdir={workdir}"],
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        env=environ,
                    )
                )

    def wait_for(self, pattern, seconds=300):
        """Until process 0 has printed `pattern`."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.logs[0].read_text()):
            if time.monotonic() > deadline or self.running[0].poll() is not None:
                self.finish(0)
                pytest.fail(self.output())
            time.sleep(0.02)

    def finish(self, seconds=300):
        """Their statuses."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(p.poll() is None for p in self.running):
            time.sleep(0.05)
        for process in self.running:
            process.kill()  # nothing, where it has ended
        return [process.wait() for process in self.running]

    def output(self):
        return "\n".join(f"--- {log.name} ---\n{log.read_text()}" for log in self.logs)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train(folder, count, devices):
    """Runs to the end. On a busy machine one process may compile for so long that the other gives
    up waiting for it; started again, both find what is compiled in the cache."""
    for _ in range(4):
        processes = Processes(folder / "logs", folder / "run", count, devices)
        statuses = processes.finish()
        if "Gloo context initialization failed" not in processes.output():
            break
    assert statuses == [0] * count, processes.output()
    return folder / "run"


@pytest.fixture(scope="module")
def two_by_two(tmp_path_factory):
    return train(tmp_path_factory.mktemp("two_by_two"), 2, 2)


@pytest.fixture(scope="module")
def stopped(two_by_two, tmp_path_factory):
    """A run of 2 x 2 that SIGTERM to its second process has stopped, and the step it is at."""
    del two_by_two  # it has compiled what this one runs
    folder = tmp_path_factory.mktemp("stopped")
    processes = Processes(folder / "logs", folder / "run", 2, 2)
    processes.wait_for(r"\nstep 2/")
    processes.running[1].send_signal(signal.SIGTERM)
    assert processes.finish() == [preemption.EXIT_STATUS] * 2, processes.output()
    (saved,) = re.findall(r"SIGTERM: saved step (\d+)", processes.output())
    assert [p.name for p in (folder / "run" / checkpoints.FOLDER).iterdir()] == [saved]
    return folder / "run", int(saved)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / metrics.FILE).read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def final_state(workdir):
    return checkpoints.read(workdir / checkpoints.FOLDER / "40")


def test_two_processes_train_as_one_does(two_by_two, tmp_path):
    alone = losses(train(tmp_path, 1, 4))
    together = losses(two_by_two)
    assert list(together) == list(alone) == list(range(1, 41))
    for step in range(1, 6):
        assert together[step] == pytest.approx(alone[step], abs=1e-5)


def test_sigterm_to_one_stops_both_and_they_go_on_exactly(two_by_two, stopped, tmp_path):
    workdir, step = stopped
    assert 2 <= step < 40
    shutil.copytree(workdir, tmp_path / "run")
    processes = Processes(tmp_path / "logs", tmp_path / "run", 2, 2)
    assert processes.finish() == [0, 0], processes.output()
    assert f"restored step {step}\n" in processes.output()
    jax.tree.map(
        np.testing.assert_array_equal, final_state(tmp_path / "run"), final_state(two_by_two)
    )
    assert losses(tmp_path / "run") == losses(two_by_two)


def test_another_number_of_hosts_goes_on_with_the_same_data(two_by_two, stopped, tmp_path):
    workdir, step = stopped
    shutil.copytree(workdir, tmp_path / "run")
    changed, same = losses(train(tmp_path, 1, 4)), losses(two_by_two)
    # Other data would change the loss by a tenth, another order of additions by a millionth.
    for later in range(step + 1, min(step + 6, 41)):
        assert changed[later] == pytest.approx(same[later], abs=1e-5)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other_with_its_name(two_by_two, tmp_path, victim):
    del two_by_two  # it has compiled what this one runs
    processes = Processes(tmp_path / "logs", tmp_path / "run", 2, 2)
    processes.wait_for(r"\nstep 2/")
    processes.running[victim].kill()
    killed = time.monotonic()
    statuses = processes.finish(60)
    assert time.monotonic() - killed < 60
    assert statuses[victim] == -signal.SIGKILL
    # Gloo may abort the survivor's process before its companion does.
    assert statuses[1 - victim] in (companion.PEER_DIED, -signal.SIGABRT), processes.output()
    said = rf"error: process {victim} of 2 \(host .*, pid {processes.running[victim].pid}\) died"
    deadline = time.monotonic() + 10  # the companion outlives the survivor
    while not re.search(said, processes.logs[1 - victim].read_text()):
        assert time.monotonic() < deadline, processes.output()
        time.sleep(0.1)


def test_what_one_process_cannot_read_ends_both_with_its_reason(tmp_path):
    processes = Processes(tmp_path / "logs", tmp_path / "run", 2, 2, data="folder:/nowhere")
    assert processes.finish(120) == [2, 2], processes.output()
    for log in processes.logs:
        assert "/nowhere" in log.read_text()
