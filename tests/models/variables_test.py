"""Variables by name, and modules made of them again."""

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import OVERRIDES, run_model

import evovit_jax
from evovit_jax.models.variables import Skeleton

FIELDS = {name.removeprefix("model."): v for name, v in OVERRIDES.items() if "model." in name}


def make(seed=0):
    return evovit_jax.create_model("evo_deit_tiny_patch16_224", seed=seed, num_classes=10, **FIELDS)


def test_names_are_paths():
    params, stats = Skeleton.variables(make())
    assert params["blocks/1/attn/qkv/kernel"].shape == (16, 48)
    assert {"cls_token", "pos_embed", "head/kernel", "head_cls/bias"} <= set(params)
    assert stats == {}


@pytest.mark.slow
def test_a_module_comes_back():
    model, other = make(seed=0), make(seed=1)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    again = Skeleton(other).build(*Skeleton.variables(model))
    np.testing.assert_array_equal(run_model(again, images)[0], run_model(model, images)[0])


def test_a_skeleton_of_shapes_is_enough():
    abstract = nnx.eval_shape(make)
    params, stats = Skeleton.variables(abstract)
    model = Skeleton(abstract).build(*Skeleton.variables(make()))
    for name, value in Skeleton.variables(model)[0].items():
        assert (value.shape, value.dtype) == (params[name].shape, params[name].dtype)
    assert stats == {}


def test_what_the_forward_pass_updates_is_kept_apart():
    class Normed(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    params, stats = Skeleton.variables(Normed())
    assert set(params) == {"norm/bias", "norm/scale"}
    assert set(stats) == {"norm/mean", "norm/var"}
    stats = {name: value + 1 for name, value in stats.items()}
    built = Skeleton(Normed()).build(params, stats)
    np.testing.assert_array_equal(built.norm.mean[...], np.ones(4))
