"""The command: what it prints, how it ends, and that nothing stops it for good."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny import tiny_flags

import evovit_jax
from evovit_jax.parallel import preemption
from evovit_jax.train import utilisation
from evovit_jax.workdir import checkpoints, metrics

# Everything random is on, the program changes on the way, and no interval divides another.
TRAINING = {
    "total_steps": 14,
    "checkpoint_steps": 4,
    "eval_steps": 5,
    "log_steps": 1,
    "accumulate": 2,
    "model.drop_path_rate": 0.2,
    "augment.mixup": 0.8,
    "augment.erasing_prob": 0.25,
}
KEYS = {"step", "val_top1", "val_top5", "val_loss", "images_per_second", "workdir"}


def command(workdir, **fields):
    given = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    module = [sys.executable, "-m", "evovit_jax.main"]
    return [*module, *tiny_flags(), *given, f"--workdir={workdir}"]


def start(workdir, **fields):
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    return subprocess.Popen(
        command(workdir, **fields),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out.splitlines(), err


def run(workdir, **fields):
    return finish(start(workdir, **fields))


def run_until(workdir, step, number, **fields):
    """Sends signal `number` when the command says that it has taken `step` steps."""
    process = start(workdir, **fields)
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        found = re.match(r"step (\d+)/", line)
        if found and int(found[1]) >= step:
            process.send_signal(number)
            break
    status, rest, err = finish(process)
    return status, lines + rest, err


def final_state(workdir, step):
    return checkpoints.read(workdir / checkpoints.FOLDER / str(step))


def metric_lines(workdir):
    lines = [json.loads(line) for line in (workdir / metrics.FILE).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in utilisation.MEASURED} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    status, out, err = run(workdir, **TRAINING)
    assert status == 0, err
    return workdir, out


def check_same(undisturbed, workdir):
    first, second = (final_state(w, 14) for w in (undisturbed[0], workdir))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert metric_lines(undisturbed[0]) == metric_lines(workdir)


@pytest.mark.slow
def test_the_last_line_is_the_result(undisturbed):
    workdir, out = undisturbed
    found = json.loads(out[-1])
    assert set(found) == KEYS
    assert (found["step"], found["workdir"]) == (14, str(workdir))
    assert 0 <= found["val_top1"] <= found["val_top5"] <= 100
    assert found["images_per_second"] > 0
    assert any(re.match(r"step 10/14  loss [\d.]+ .*accuracy [\d.]+%", line) for line in out)
    steps = [line["step"] for line in metric_lines(workdir) if "val_top1" in line]
    assert steps == [5, 10, 14]


@pytest.mark.slow
def test_a_complete_run_says_so_and_evaluates_again(undisturbed):
    workdir, out = undisturbed
    before = (workdir / metrics.FILE).read_text()
    status, again, _ = run(workdir, **TRAINING)
    assert status == 0
    assert "restored step 14" in again
    assert any("the run is complete at step 14" in line for line in again)
    first, second = json.loads(out[-1]), json.loads(again[-1])
    assert all(first[name] == second[name] for name in KEYS - {"images_per_second"})
    assert (workdir / metrics.FILE).read_text() == before


@pytest.mark.slow
def test_killed_five_times_it_ends_as_if_it_had_not_been(undisturbed, tmp_path):
    steps = sorted(random.Random(0).sample(range(2, 14), 5))
    for step in steps:
        status, _, err = run_until(tmp_path, step, signal.SIGKILL, **TRAINING)
        assert status == -signal.SIGKILL, err
    status, out, err = run(tmp_path, **TRAINING)
    assert status == 0, err
    assert any(re.match(r"restored step \d+", line) for line in out)
    check_same(undisturbed, tmp_path)


@pytest.mark.slow
def test_sigterm_saves_and_asks_to_be_restarted(undisturbed, tmp_path):
    status, out, err = run_until(tmp_path, 5, signal.SIGTERM, **TRAINING)
    assert status == preemption.EXIT_STATUS == 143, err
    saved = next(int(line.split()[-1]) for line in out if line.startswith("SIGTERM: saved step"))
    assert json.loads(out[-1])["step"] == saved
    status, out, err = run(tmp_path, **TRAINING)
    assert status == 0, err
    assert f"restored step {saved}" in out
    check_same(undisturbed, tmp_path)


def refused(*args, **fields):
    status, out, err = run(*args, **fields)
    assert status == 2
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert not out or "{" not in out[-1]
    return errors[0]


# Each starts a process of its own.
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"batch_sise": 3}, "did you mean config.batch_size?", marks=SLOW),
        pytest.param({"learning_rate": 3}, "did you mean config.optim.learning_rate?", marks=SLOW),
        pytest.param({"batch_size": "many"}, "batch_size", marks=SLOW),
        ({"batch_size": 15}, "batch_size=15 does not divide over 2 devices"),
        pytest.param({"reduction": "evoo"}, "unknown reduction 'evoo'", marks=SLOW),
        pytest.param({"reduction": "evo,keep_rate=1.5"}, "keep_rate", marks=SLOW),
        pytest.param({"model.name": "deit_smal"}, "unknown model 'deit_smal'", marks=SLOW),
        pytest.param({"data": "folder:/nowhere"}, "/nowhere", marks=SLOW),
        pytest.param({"warmup_epochs": -1}, "warmup_epochs=-1.0 is negative", marks=SLOW),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, fields, message):
    assert message in refused(tmp_path, **fields)


def test_a_work_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    found = refused(tmp_path / "file" / "run")
    assert "the work directory" in found
    assert "cannot be written" in found


@pytest.mark.slow
def test_a_checkpoint_of_another_network(undisturbed):
    found = refused(undisturbed[0], **TRAINING | {"model.embed_dim": 32})
    assert "another architecture" in found
    assert "blocks/0/attn/proj/bias (float32[16] there, float32[32] here)" in found


@pytest.mark.slow
def test_a_tensor_that_is_not_finite_stops_the_run(tmp_path):
    fields = {"optim.learning_rate": 1e12, "warmup_steps": 0, "layer_to_stage_steps": 0}
    found = refused(tmp_path, total_steps=30, checkpoint_steps=1, **fields)
    assert re.search(r"is not finite at step \d+; checkpoint \d+ is good", found)


def test_the_command_is_short():
    source = pathlib.Path(evovit_jax.__file__).with_name("main.py")
    assert len(source.read_text().splitlines()) <= 80


@pytest.mark.slow
def test_an_interrupt_ends_a_run_in_one_line_and_it_goes_on(undisturbed, tmp_path):
    status, _, err = run_until(tmp_path, 5, signal.SIGINT, **TRAINING)
    assert status == 75
    line = "error: interrupted by SIGINT; what is on disk is whole: start again to go on"
    assert "Traceback" not in err
    assert err.splitlines()[-1] == line
    status, out, err = run(tmp_path, **TRAINING)
    assert status == 0, err
    assert any(re.match(r"restored step \d+", line) for line in out)
    check_same(undisturbed, tmp_path)


LIMITS = {"-f 20": 2, "-n 16": 2, "-v 3000000": 2}


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "expected"), LIMITS.items())
def test_a_limit_of_the_process_is_one_line(tmp_path, limit, expected):
    shell = ["bash", "-c", f'ulimit {limit} && exec "$@"', "bash"]
    done = subprocess.run(
        [*shell, *command(tmp_path, **TRAINING)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("what", ["", "checkpoints"])
def test_a_work_directory_that_goes_is_one_line(tmp_path, what):
    workdir = tmp_path / "run"
    process = start(workdir, **TRAINING | {"total_steps": 300})
    for line in process.stdout:
        if line.startswith("step 5/"):
            break
    shutil.rmtree(workdir / what)
    status, _, err = finish(process)
    assert status == 2, err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert err.rstrip().endswith("start again")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 0.6, 1.2, 2.5])
def test_an_interrupt_while_it_starts_is_no_traceback(tmp_path, seconds):
    process = start(tmp_path, **TRAINING)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status in (75, -signal.SIGINT)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "fields",
    [
        {"profile_steps": "5:1"},
        pytest.param({"augment.randaugment": "rand-x9"}, marks=SLOW),
    ],
)
def test_a_start_that_is_refused_leaves_no_folder(tmp_path, fields):
    refused(tmp_path / "run", **fields)
    assert not (tmp_path / "run").exists()
