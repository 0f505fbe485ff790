"""What a run needs on devices that are not here: the formula, the compiler, the command."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from tiny import some_slow, tiny_config, tiny_flags

from evovit_jax.errors import UserError
from evovit_jax.plan import memory
from evovit_jax.plan import report as plan_report
from evovit_jax.plan.collectives import Collective
from evovit_jax.train.program import build

KEYS = {
    "param_bytes_per_device",
    "optimizer_bytes_per_device",
    "activation_bytes_per_device",
    "collectives",
}
# The tables below are one digit's recipe on 224 px, so that nothing but the embedded data is read.
DEIT_S = {
    "model.name": "evo_deit_small_patch16_224",
    "model.image_size": 224,
    "model.patch_size": 16,
    "model.embed_dim": 384,
    "model.depth": 12,
    "model.num_heads": 6,
    "model.num_classes": 1000,
    "batch_size": 64,
    "eval_batch_size": 64,
}


def by_formula(shapes, fsdp):
    """Bytes of float32 arrays on a device: those that have a dimension to split are split."""
    total = 0
    for shape in shapes:
        splits = fsdp > 1 and any(length % fsdp == 0 for length in shape)
        total += 4 * math.prod(shape) // (fsdp if splits else 1)
    return total


def check_formula(found, shapes, fsdp):
    expected = by_formula(shapes, fsdp)
    assert found["param_bytes_per_device"] == expected
    assert found["ema_bytes_per_device"] == expected
    counters = found["optimizer_bytes_per_device"] - 2 * expected  # the steps that Adam has taken
    assert 0 < counters <= 16


@pytest.mark.parametrize("fsdp", some_slow([1, 4], {4}))
@pytest.mark.slow
def test_the_state_is_what_the_formula_says(fsdp):
    config = tiny_config(mesh__fsdp=fsdp, ema__decay=0.99)
    made = memory.make(config, jax.devices())
    shapes = [leaf.shape for leaf in build(config).like.params.values()]
    check_formula(json.loads(plan_report.as_json(made, None)), shapes, fsdp)
    assert made.mesh == {"data": 8 // fsdp, "fsdp": fsdp}
    assert ("all-gather" in made.collectives) == (fsdp > 1)
    assert made.activation_bytes_per_device > 0


def test_data_parallelism_adds_up_every_gradient_once():
    config = tiny_config(accumulate=1)
    made = memory.make(config, jax.devices())
    gradients = made.param_bytes_per_device
    assert set(made.collectives) == {"all-reduce"}
    reduced = made.collectives["all-reduce"]
    # Less a gradient that follows from another's, plus the loss's terms and the accuracy.
    assert reduced.bytes == pytest.approx(gradients, rel=0.01)
    assert reduced.sent_bytes == pytest.approx(2 * 7 / 8 * reduced.bytes, abs=1)


@pytest.mark.slow
def test_remat_and_accumulation_need_less():
    def activations(**fields):
        config = tiny_config(batch_size=64, model__depth=4, model__image_size=16, **fields)
        return memory.make(config, jax.devices()[:1]).activation_bytes_per_device

    plain = activations()
    assert activations(model__remat="full") < 0.5 * plain
    assert activations(accumulate=4) < 0.5 * plain


@pytest.mark.slow
def test_no_average_takes_no_memory():
    made = memory.make(tiny_config(ema__decay=0.0), jax.devices())
    assert made.ema_bytes_per_device == 0


def test_a_data_set_that_is_not_there_has_its_classes(tmp_path):
    config = tiny_config(data="tfds:imagenet2012", data_dir=str(tmp_path))
    assert memory.num_classes(config) == 1000
    assert not list(tmp_path.iterdir())


def test_classes_that_nobody_knows(tmp_path):
    config = tiny_config(data="tfds:no_such_set", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"set model\.num_classes"):
        memory.num_classes(config)


def test_an_epoch_of_cifar10_is_shorter_than_one_of_imagenet():
    assert memory.examples(tiny_config(data="tfds:cifar10:train")) == 50_000
    assert memory.examples(tiny_config(data="tfds:imagenet2012:train")) == 1_281_167


def example(**changes):
    fields = {
        "model": "m (none)",
        "phase": "from step 0",
        "devices": 8,
        "mesh": {"data": 2, "fsdp": 4},
        "batch_size_per_device": 4,
        "param_bytes_per_device": 2**30,
        "optimizer_bytes_per_device": 2**31,
        "ema_bytes_per_device": 2**30,
        "other_bytes_per_device": 0,
        "activation_bytes_per_device": 2**32,
        "collectives": {"all-reduce": Collective(3, 2**20, 2**21, {"bf16": 2**20})},
        "compile_seconds": 1.0,
    }
    return plan_report.Plan(**fields | changes)


def test_the_report():
    text = plan_report.as_text(example(), 16)
    assert "m (none) on 8 devices (data=2, fsdp=4), 4 images a device and step" in text
    assert "total                                 8192.0" in text
    assert "all-reduce                       3       1.0       2.0    bf16 1.0" in text
    assert text.endswith("fits: 8.00 of 16 GiB, 50 %")
    assert "does not fit: 8.00 of 7 GiB, 114 %; more devices" in plan_report.as_text(example(), 7)
    assert "TPU v5e, " in plan_report.as_text(example(), None)
    assert plan_report.as_text(example(collectives={}), 16).splitlines()[-3] == "none"


def test_what_not_every_run_has_is_a_row_only_where_it_is():
    assert "teacher" not in plan_report.as_text(example(), 16)
    rows = {"teacher": 2**20, "padding": 2**21, "program": 2**22}
    made = example(**{f"{name}_bytes_per_device": size for name, size in rows.items()})
    lines = [line.split() for line in plan_report.as_text(made, 16).splitlines()]
    for name, size in rows.items():
        assert [name, f"{size / 2**20:.1f}"] in lines
    assert made.total_bytes_per_device == 2**33 + sum(rows.values())


def test_the_report_as_json():
    found = json.loads(plan_report.as_json(example(), 8))
    assert found["fits"] is True
    assert found["total_bytes_per_device"] == 2**33
    sent = {"count": 3, "bytes": 2**20, "sent_bytes": 2**21, "bytes_by_dtype": {"bf16": 2**20}}
    assert found["collectives"] == {"all-reduce": sent}
    assert json.loads(plan_report.as_json(example(), 7.9))["fits"] is False
    assert json.loads(plan_report.as_json(example(), None))["fits"] is None


def command(*flags):
    environ = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    return subprocess.run(
        [sys.executable, "-m", "evovit_jax.main", *flags],
        capture_output=True,
        text=True,
        env=environ,
        cwd=pathlib.Path(__file__).parents[2],
        timeout=300,
        check=False,
    )


def test_the_command_wants_a_number_of_devices():
    done = command(*tiny_flags(), "--plan")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith(
        "error: --devices=0: say how many devices to plan for, --devices=64"
    )


@pytest.mark.slow
def test_64_devices_compile_evo_deit_s():
    recipe = f"--config={pathlib.Path(__file__).parents[2] / 'configs' / 'digits_evo.py'}"
    fields = [f"--config.{name}={value}" for name, value in DEIT_S.items()]
    flags = ["--plan", "--devices=64", "--hbm_gib=16", "--json", "--config.mesh.fsdp=8"]
    done = command(recipe, *fields, *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) >= KEYS
    assert found["mesh"] == {"data": 8, "fsdp": 8}
    config = tiny_config(**{name.replace(".", "__"): value for name, value in DEIT_S.items()})
    shapes = [leaf.shape for leaf in build(config, jax.devices()[:1]).like.params.values()]
    check_formula(found, shapes, 8)
    parameters = 4 * sum(math.prod(shape) for shape in shapes)
    assert found["param_bytes_per_device"] == pytest.approx(parameters / 8, rel=0.01)
    assert found["activation_bytes_per_device"] > parameters  # the gathered weights at least
    assert found["collectives"]["all-gather"]["bytes"] > 0.9 * parameters
    assert found["fits"] is True
