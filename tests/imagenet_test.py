"""The paper's recipe, end to end, on ImageNet as TFDS describes it (mock images)."""

import math

import pytest
import tensorflow_datasets as tfds
from tiny import CONFIGS

from evovit_jax import config as config_lib
from evovit_jax.train import loop


@pytest.mark.slow
def test_the_papers_recipe_runs_on_imagenet_from_tfds(tmp_path):
    config = config_lib.load(f"{CONFIGS / 'deit_s_evo.py'}:smoke")
    recipe = config_lib.load(f"{CONFIGS / 'deit_s_evo.py'}:")
    assert recipe.data.startswith("tfds:imagenet2012")
    config.data, config.eval_data = recipe.data, recipe.eval_data
    with tfds.testing.mock_data(num_examples=20):
        result = loop.train_and_evaluate(config, tmp_path)
    assert result.summary["step"] == 2
    assert math.isfinite(result.summary["val_loss"])
    assert (tmp_path / "checkpoints" / "2").is_dir()
