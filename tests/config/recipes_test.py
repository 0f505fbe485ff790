"""Every recipe, written out in full, against what was reviewed; and what it says of its cost.

`UPDATE_GOLDEN=1 pytest tests/config/recipes_test.py` writes tests/golden/configs anew; the change
of those files is what a reviewer reads.
"""

import os
import re

import pytest
from tiny import CONFIGS

from evovit_jax import config as config_lib
from evovit_jax.config import durations
from evovit_jax.models import model_entry
from evovit_jax.train.distillation import check

GOLDEN = CONFIGS.parent / "tests" / "golden"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py"))
STUDY = sorted(name for name in RECIPES if "haurum" in (CONFIGS / f"{name}.py").read_text().lower())
COST = re.compile(
    r"Cost: about ([\d.,]+) A100-hours, .*: 2 x \(?3 x ([\d.]+)(?: \+ ([\d.]+)\))? GMACs x "
    r"1\.281 M images x (\d+) epochs at 35 % of (312|156) TFLOP/s"
)


def load(name, variant=""):
    return config_lib.load(f"{CONFIGS / name}.py:{variant}")


def written_out(config):
    lines = []
    for field in config_lib.field_names(config):
        value = config
        for part in field.split("."):
            value = value[part]
        lines.append(f"{field} = {value!r}\n")
    return "".join(lines)


def device_hours(
    *,
    student: float,
    epochs: float,
    teacher: float = 0.0,
    images: float = 1_281_167,
    dtype: str = "bfloat16",
) -> float:
    """A100-hours that a training costs: an estimate, so that recipes can be compared.

    `2 * (3 * student + teacher)` operations an image, since the backward pass costs twice the
    forward one, at 35 % of the peak of an A100: 312e12 a second in bfloat16, 156e12 in float32
    (TF32).

    Args:
      student: multiply-adds of a forward pass of one image, 1e9.
      epochs: how often each image is seen.
      teacher: as `student`, of a teacher.
      images: of an epoch.
      dtype: of the matmuls.
    """
    peak = {"bfloat16": 312e12, "float32": 156e12}[dtype]
    return 2e9 * (3 * student + teacher) * images * epochs / (0.35 * peak) / 3600


@pytest.mark.parametrize("name", RECIPES)
def test_equals_what_was_reviewed(name):
    path = GOLDEN / "configs" / f"{name}.txt"
    text = written_out(load(name))
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.is_file(), f"{path.name} is missing; see the top of this file"
    assert text == path.read_text()


def test_nothing_was_reviewed_that_is_gone():
    assert sorted(path.stem for path in (GOLDEN / "configs").glob("*.txt")) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_the_cost_is_that_of_the_recipe(name):
    doc = " ".join((CONFIGS / f"{name}.py").read_text().split('"""')[1].split())
    if "A100-hours" not in doc:
        return  # the next test asks for a cost in words
    hours, student, teacher, epochs, peak = COST.search(doc).groups()
    c = load(name)
    assert float(epochs) == c.total_epochs
    assert (teacher is not None) == (c.distill.kind != "none")
    assert c.model.dtype == {"312": "bfloat16", "156": "float32"}[peak]
    found = device_hours(
        student=float(student),
        teacher=float(teacher or 0),
        epochs=c.total_epochs,
        dtype=c.model.dtype,
    )
    assert float(hours.replace(",", "")) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("name", RECIPES)
def test_says_what_was_published_and_what_to_expect(name):
    doc = " ".join((CONFIGS / f"{name}.py").read_text().split('"""')[1].split())
    parts = re.split(r"(Published|Expected|Cost): ", doc)
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(said) == parts[1::2], "one of them is said twice"
    assert set(said) == {"Published", "Expected", "Cost"}
    assert all(text.strip(" .") for text in said.values())


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_is_the_published_one_and_its_distillation_fits(name):
    c = load(name)
    check(c)
    entry = model_entry(c.model.name)
    if "imagenet" in c.data:
        assert c.model.image_size == entry.transform.image_size
        resize = int(c.model.image_size / c.eval_transform.crop_fraction)
        assert abs(resize - entry.transform.resize) <= 1
        assert (c.mean, c.std) == (entry.transform.mean, entry.transform.std)
        assert c.total_epochs in (1, 30, 100, 120, 300, 1000)


def test_the_study_has_its_ten_methods_at_four_keep_rates():
    methods = set()
    for name in STUDY:
        rates = [load(name, f"keep{rate}").reduction for rate in (90, 70, 50, 25)]
        method = rates[0].split(",")[0]
        assert [
            f"keep_rate={rate}" in spec
            for rate, spec in zip((0.9, 0.7, 0.5, 0.25), rates, strict=True)
        ] == [True] * 4
        assert rates[1] == load(name).reduction
        methods.add(method)
    assert methods >= {
        "ats",
        "dpcknn",
        "dynamicvit",
        "evit",
        "kmedoids",
        "patchmerger",
        "sinkhorn",
        "sit",
        "tome",
        "topk",
    }


def test_levits_recipe():
    c = load("levit_256")
    assert (c.total_epochs, c.batch_size, c.optim.weight_decay, c.optim.agc) == (
        1000,
        8192,
        0.025,
        0.01,
    )
    rate = c.optim.learning_rate * c.batch_size / c.optim.reference_batch
    assert rate == pytest.approx(8e-3)
    assert (c.distill.kind, c.distill.teacher, c.distill.alpha) == ("hard", "regnety_160", 0.5)
    evo = load("levit_256_evo")
    assert (evo.total_epochs, evo.batch_size, evo.layer_to_stage_epochs) == (300, 2048, 200)
    assert evo.distill.kind == "cls"
    assert load("levit_384_evo").batch_size == 1024


def test_evits_schedule_and_fine_tuning():
    c = load("deit_s_evit")
    assert (c.batch_size, c.keep_rate_start_epochs, c.keep_rate_warmup_epochs) == (2048, 10, 100)
    c = load("deit_s_evit_finetune")
    assert (c.total_epochs, c.warmup_epochs, c.keep_rate_warmup_epochs) == (30, 0, None)
    assert (c.optim.learning_rate, c.optim.min_learning_rate, c.optim.weight_decay) == (
        2e-5,
        2e-6,
        1e-6,
    )
    assert c.init_weights.startswith("hf://")


def test_dynamicvits_fine_tuning():
    c = load("deit_b_dynamicvit")
    assert (c.total_epochs, c.warmup_epochs, c.freeze_epochs, c.ema.decay) == (30, 5, 5, 0.9999)
    assert (c.optim.learning_rate, c.optim.reference_batch, c.optim.min_learning_rate) == (
        1e-3,
        0,
        1e-6,
    )
    assert dict(c.loss.reducer_weights) == {"ratio": 5.0, "distill_.*": 0.5}
    assert (c.augment.repeats, c.distill.kind, c.init_allow_missing) == (1, "self", "reducer/.*")


@pytest.mark.parametrize("name", ["convnext_t_dynamic", "swin_t_dynamic"])
def test_dynamicvits_fine_tuning_on_maps(name):
    c = load(name)
    assert (c.total_epochs, c.warmup_epochs, c.freeze_epochs, c.batch_size) == (120, 20, 5, 4096)
    assert (c.optim.learning_rate, c.optim.reference_batch) == (4e-3, 0)
    assert dict(c.optim.learning_rate_rules) == {"reducer/.*": 1.0, ".*": 0.2}
    assert dict(c.loss.reducer_weights) == {"ratio": 10.0, "distill_.*": 0.5}
    assert (c.model.drop_path_rate, c.reduction) == (0.2, "dynamicvit,keep_rate=0.7")
    assert load(name, "keep90").reduction == "dynamicvit,keep_rate=0.9"


@pytest.mark.parametrize("name", RECIPES)
def test_smoke_is_two_small_steps(name):
    c, whole = load(name, "smoke"), load(name)
    assert (c.total_steps, c.batch_size, c.init_weights) == (2, 16, "")
    assert (c.distill.kind, c.reduction) == (whole.distill.kind, whole.reduction)
    assert c.optim.to_dict() == whole.optim.to_dict()
    for kind in ("freeze", "keep_rate_warmup"):
        given = any(whole[f"{kind}_{unit}"] is not None for unit in durations.UNITS)
        assert c[f"{kind}_steps"] == (1 if given else None)
