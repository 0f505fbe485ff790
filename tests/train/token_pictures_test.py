"""The tokens of a few images at every evaluation: what is drawn, and that nothing else changes."""

import json

import jax
import numpy as np
import pytest
from tensorboard_events import pictures
from tiny import tiny_config

from evovit_jax import config as config_lib
from evovit_jax.errors import UserError
from evovit_jax.inference import token_pictures as drawing
from evovit_jax.train import loop
from evovit_jax.train.program import build
from evovit_jax.train.token_pictures import TokenPictures
from evovit_jax.workdir import checkpoints, metrics

EVIT = {"reduction": "evit,keep_rate=0.5,locations=1", "model__image_size": 8}


def test_the_first_images_are_drawn_as_the_network_sees_them():
    """The maps of a network whose values are known to give other ones: the averages'."""
    run = build(tiny_config(visualize_images=3, **EVIT), jax.devices()[:2])
    state = run.fresh_state()
    found = TokenPictures(run).of(state)
    assert list(found) == ["tokens/000", "tokens/001", "tokens/002"]
    first = run.data.first_to_evaluate(4)
    look, fold = run.inference
    with jax.set_mesh(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])):
        values = jax.device_get(state.evaluated())
        _, maps = jax.jit(look)(fold(*values), first["image"])
    for i, picture in enumerate(found.values()):
        panels = drawing.panels([m[i] for m in maps[:-1]], prefix=1, grid=(4, 4))
        assert len(panels) == 2
        expected = drawing.strip(first["image"][i], panels, most=12, side=112)
        np.testing.assert_array_equal(picture, expected)


def test_none_are_drawn_by_default():
    run = build(tiny_config(), jax.devices()[:1])
    assert run.config.visualize_images == 0
    assert TokenPictures(run).of(None) == {}


def test_images_that_are_not_there_are_not_drawn(tmp_path):
    config = tiny_config(visualize_images=5, eval_data="tfds:digits:test[:3]", **EVIT)
    run = build(config, jax.devices()[:1])
    assert list(TokenPictures(run).of(run.fresh_state())) == [f"tokens/{i:03d}" for i in range(3)]


def test_a_network_without_tokens_is_refused_at_the_start():
    regnet = {"model__name": "regnety_160", "reduction": ""}
    none = dict.fromkeys(("patch_size", "embed_dim", "num_heads", "depth"))
    config = tiny_config(**regnet, **{f"model__{name}": value for name, value in none.items()})
    config.visualize_images = 2
    with pytest.raises(UserError, match="visualize_images=2: regnety_160 has no tokens to show"):
        TokenPictures(build(config, jax.devices()[:1]))


@pytest.mark.parametrize("value", [-1, 101])
def test_a_number_of_images_that_cannot_be(value):
    with pytest.raises(UserError, match=f"visualize_images={value} must be at "):
        config_lib.check(tiny_config(visualize_images=value))


@pytest.mark.slow
def test_a_run_with_pictures_is_the_same_run(tmp_path, monkeypatch):
    """To the last bit: what is on disk, but for the pictures and the speeds."""
    monkeypatch.setattr(loop, "build", lambda config: build(config, jax.devices()[:1]))
    fields = {"total_steps": 4, "eval_steps": 2, "checkpoint_steps": 4, "layer_to_stage_steps": 0}
    kept = []
    for count in (0, 2):
        workdir = tmp_path / str(count)
        loop.train_and_evaluate(tiny_config(visualize_images=count, **fields), workdir)
        lines = [json.loads(line) for line in (workdir / metrics.FILE).read_text().splitlines()]
        values = [{k: v for k, v in line.items() if "loss" in k or "val" in k} for line in lines]
        kept.append((values, checkpoints.load_variables(workdir, 4)))
    jax.tree.map(np.testing.assert_array_equal, *kept)
    assert pictures(tmp_path / "0" / "tensorboard") == []
    found = pictures(tmp_path / "2" / "tensorboard")
    steps = [(step, name) for step, name, _ in found]
    assert steps == [(step, f"tokens/{i:03d}") for step in (2, 4) for i in range(2)]
