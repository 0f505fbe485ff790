"""The tokens of a few images at every evaluation: what is drawn, and that nothing else changes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard_events import pictures
from tiny import tiny_config

from evovit_jax import config as config_lib
from evovit_jax.config.variants import network
from evovit_jax.errors import UserError
from evovit_jax.inference import token_pictures as drawing
from evovit_jax.train import loop
from evovit_jax.train.program import Program, build
from evovit_jax.train.token_pictures import TokenPictures
from evovit_jax.workdir import checkpoints, metrics

EVIT = {"reduction": "evit,keep_rate=0.5,locations=1,fuse=false", "model__image_size": 8}


def expected_pictures(images, maps):
    """Of what a network without a mesh makes of the images."""
    maps = [np.asarray(m) for m in maps[:-1]]
    found = []
    for i, image in enumerate(images):
        panels = drawing.panels([m[i] for m in maps], prefix=1, grid=(4, 4))
        assert len(panels) == 2
        found.append(drawing.strip(image, panels, most=12, side=112))
    return found


def test_images_that_are_there_are_drawn_by_their_numbers(monkeypatch):
    """With a stand-in for the network, whose second block drops half of the patches."""
    half = np.concatenate([np.arange(9), np.full(8, -2)]).astype(np.int32)
    maps = (np.arange(17, dtype=np.int32), half, half)

    def look(state, pixels):
        del state
        return pixels[:, 0, 0], tuple(jnp.tile(m, (len(pixels), 1)) for m in maps)

    monkeypatch.setattr(Program, "inference", (look, lambda params, stats: jnp.zeros(())))
    config = tiny_config(visualize_images=5, eval_data="tfds:digits:test[:3]", **EVIT)
    run = build(config, jax.devices()[:1])
    found = TokenPictures(run).of(run.like)
    assert list(found) == [f"tokens/{i:03d}" for i in range(3)]
    first = run.data.first_to_evaluate(5)["image"][:3]
    expected = expected_pictures(first, [np.tile(m, (3, 1)) for m in maps])
    np.testing.assert_array_equal(list(found.values()), expected)


@pytest.mark.slow
def test_on_several_devices_they_are_what_one_would_draw():
    run = build(tiny_config(visualize_images=3, **EVIT), jax.devices()[:2])
    state = run.fresh_state()
    found = TokenPictures(run).of(state)
    assert list(found) == ["tokens/000", "tokens/001", "tokens/002"]
    first = run.data.first_to_evaluate(4)["image"]
    look, fold = run.inference
    _, maps = jax.jit(look)(fold(*jax.device_get(state.evaluated())), first)
    expected = expected_pictures(first, maps)
    np.testing.assert_array_equal(list(found.values()), expected[:3])


def test_none_are_drawn_by_default():
    run = build(tiny_config(), jax.devices()[:1])
    assert run.config.visualize_images == 0
    assert TokenPictures(run).of(run.like) == {}


@pytest.mark.slow
def test_a_network_without_tokens_is_refused_at_the_start():
    config = tiny_config(model__name="pvt_v2_b0", reduction="none", visualize_images=2)
    config.update_from_flattened_dict({**network("pvt_v2_b0"), "model.patch_size": None})
    with pytest.raises(UserError, match="visualize_images=2: pvt_v2_b0 has no tokens to show"):
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
