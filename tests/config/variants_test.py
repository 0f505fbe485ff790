"""Every recipe resolves, and runs two steps in its smoke form."""

import json
import math

import pytest
from tiny import CONFIGS

from evovit_jax import config as config_lib
from evovit_jax.models import model_entry
from evovit_jax.train import loop, reduction_schedule

RECIPES = sorted(path.name for path in CONFIGS.glob("*.py"))
FIRST = {"deit_s.py", "deit_s_evo.py", "digits_evo.py", "digits_deit.py"} | {
    "cifar10_evo.py",
    "cifar10_deit.py",
}


def load(name, variant=""):
    return config_lib.load(f"{CONFIGS / name}:{variant}")


def test_the_first_recipes_are_there():
    assert set(RECIPES) >= FIRST


@pytest.mark.parametrize("name", RECIPES)
def test_resolves(name):
    config = load(name)
    config_lib.check(config)
    assert config_lib.field_names(config) == config_lib.field_names(config_lib.get_config())
    entry = model_entry(config.model.name)
    given = {k: v for k, v in config.model.items() if v is not None and k != "name"}
    known = set(entry.model.Config.__dataclass_fields__)
    assert set(given) <= known
    plan = reduction_schedule.plan(config, total=1000, examples=1000 * config.batch_size // 300)
    assert plan[0].start == 0


@pytest.mark.parametrize("name", RECIPES)
def test_says_how_to_run_it(name):
    text = (CONFIGS / name).read_text()
    assert f"--config=configs/{name}" in text.split('"""')[1]


# Each compiles programs of its own; CI runs that of digits_evo.py as its main job.
@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_smoke(name, tmp_path):
    config = load(name, "smoke")
    assert config.reduction == load(name).reduction
    result = loop.train_and_evaluate(config, tmp_path)
    assert not result.preempted
    assert result.summary["step"] == 2
    assert math.isfinite(result.summary["val_loss"])
    assert (tmp_path / "checkpoints" / "2").is_dir()
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]


@pytest.mark.parametrize("name", ["digits", "cifar10"])
@pytest.mark.parametrize("variant", ["", "smoke"])
def test_a_dense_twin_differs_in_nothing_else(name, variant):
    evo, dense = (load(f"{name}_{kind}.py", variant).to_dict() for kind in ("evo", "deit"))
    assert dense.pop("reduction") == "none"
    assert evo.pop("reduction") == ""
    assert evo == dense
    assert model_entry(evo["model"]["name"]).reduction == "evo"


def test_the_papers_recipe():
    # Xu et al. 2022, Section 4.1 and the authors' command: DeiT's recipe, 300 epochs, batch 1024.
    c = load("deit_s_evo.py")
    assert (c.total_epochs, c.warmup_epochs, c.layer_to_stage_epochs) == (300, 5, 200)
    assert c.optim.learning_rate * c.batch_size / c.optim.reference_batch == pytest.approx(1e-3)
    assert (c.optim.warmup_learning_rate, c.optim.min_learning_rate) == (1e-6, 1e-5)
    assert (c.optim.weight_decay, c.optim.eps, c.optim.clip_norm, c.optim.agc) == (0.05, 1e-8, 0, 0)
    a = c.augment
    assert (a.mixup, a.cutmix, a.mix_prob, a.mix_switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (a.randaugment, a.erasing_prob, a.repeats) == ("rand-m9-mstd0.5-inc1", 0.25, 3)
    assert (c.loss.label_smoothing, c.loss.cls_weight, c.ema.decay) == (0.1, 0.5, 0.99996)
    assert (c.model.drop_path_rate, c.model.image_size) == (0.1, 224)
    assert c.eval_transform.crop_fraction == 224 / 256
