"""Whatever a flag of a training says: two finite steps, or one line before a file is written."""

import contextlib
import json
import math

import jax
import pytest
from hostile_configs import SAME, config_of, is_untouched, overrides, plain
from hypothesis import example, given, settings
from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.data.augment import TrainTransform
from evovit_jax.errors import UserError
from evovit_jax.models.registry import abstract_model
from evovit_jax.train import loop
from evovit_jax.train.program import build

# ml_collections loads recipes in a way that Python wants to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
NETWORKS = ("model.", "reduction")


def checked(given: dict[str, str]) -> ConfigDict:
    """The config of these flags, as far as it can be judged without a network.

    Raises:
      UserError: no run can use it.
    """
    config = config_of(given)
    config_lib.check(config)
    TrainTransform(config)
    return config


def refusal(action, *args) -> str | None:
    """What `action` is refused with, None where it is not."""
    try:
        action(*args)
    except UserError as error:
        return str(error)
    return None


@settings(SAME, max_examples=60)
@given(overrides())
def test_any_flags_make_a_config_or_one_line(given):
    said = refusal(checked, given)
    assert said is None or (said.isprintable() and len(said) <= 1000)


def shaped(given: dict[str, str]) -> None:
    """Makes the network of these flags without values."""
    config = checked(given)
    fields = {k: v for k, v in config.model.items() if k != "name" and v is not None}
    abstract_model(config.model.name, config.reduction or None, **fields | {"num_classes": 10})


@settings(SAME, max_examples=8)
@given(overrides().filter(lambda given: all(name.startswith(NETWORKS) for name in given)))
def test_any_flags_of_a_network_make_one_or_one_line(given):
    said = refusal(shaped, given)
    assert said is None or said.isprintable()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.depth", "100000", "depth must be at most 256"),
        ("model.depth", "1e20", "depth must be a whole number"),
        ("model.embed_dim", "{}", "embed_dim must be a whole number"),
        ("model.num_heads", "[1]", "num_heads must be a whole number, got 1:"),
        ("model.num_heads", "(1,)", "num_heads must be a whole number, got 1:"),
        ("model.image_size", "100000", "image_size must be at most 8192"),
        ("model.image_size", "4096", "more than 16384 patches"),
        ("model.num_classes", "10000001", "model.num_classes=10000001 must be at most 1000000"),
        ("model.mlp_ratio", "1e300", "mlp_ratio must be"),
        ("model.drop_path_rate", "0.999999999999", "drop_path_rate=0.999999999999 must be at most"),
        ("batch_size", "99999999999999999999", "must be at most 16777216"),
        ("seed", "9" * 23, "must be at most 4294967295"),
        ("seed", "-1", "seed=-1 must be at least 0"),
        ("max_image_pixels", "0", "max_image_pixels=0 must be at least 1"),
        ("profile_steps", "5:1", "say FIRST:END"),
        ("profile_steps", "9" * 30 + ":" + "9" * 31, "say FIRST:END"),
        ("augment.randaugment", "rand-m9-n999999999", "'n999999999' is more than 14"),
        ("augment.randaugment", "rand-m" + "9" * 400, "write it as rand-m9"),
        ("augment.pad", "5", "must be at most half the image, 4 pixels"),
        ("augment.scale", "(0.5,0.1)", "the first must be the smaller"),
        ("augment.scale", "(0.1,1e308)", "must be at most 1"),
        ("augment.mixup", "1e-300", "must be 0 or at least 0.001"),
        ("optim.beta1", "0.99999999999", "must be at most 0.999999"),
        ("optim.eps", "1e-300", "must be 0 or at least"),
        ("optim.eps", "0", "must be above 0"),
        ("optim.learning_rate", "1e30", "must be at most 100"),
        ("optim.reference_batch", "-1", "must be at least 0"),
        ("std", "(1e-300,1,1)", "must be 0 or at least"),
        ("distill.tau", "1e-300", "must be 0 or at least"),
        ("init_allow_missing", "(", "is no regular expression"),
        ("init_allow_missing", "x{99999999999}", "is no regular expression"),
    ],
)
def test_what_was_not_refused_before(field, value, message):
    said = refusal(shaped if field.startswith("model.") else checked, {field: value})
    assert said is not None
    assert message in said


def trained(given: dict[str, str], folder) -> str | None:
    """Trains two steps of this config on one device; returns what it is refused with."""
    workdir = folder / "run"
    try:
        config = config_of(given)
        if not plain(given, config):
            build(config, jax.devices()[:1])
            return None
        loop.train_and_evaluate(config, workdir)
    except UserError as error:
        assert is_untouched(workdir), sorted(workdir.rglob("*"))
        return str(error)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[-1]["step"] == 2
    numbers = [value for record in records for value in record.values()]
    assert all(math.isfinite(value) for value in numbers)
    return None


# Threads of a run that has just ended may draw from `random` while the next flags are drawn.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.slow
@settings(SAME, max_examples=60)
@given(overrides(most=2))
@example({"model.depth": "2"})
def test_any_flags_train_or_are_refused_before_a_file_is_written(tmp_path_factory, given):
    folder = tmp_path_factory.mktemp("hostile")
    with contextlib.chdir(folder):  # a drawn data folder is one here
        said = trained(given, folder)
    assert said is None or said.isprintable()
