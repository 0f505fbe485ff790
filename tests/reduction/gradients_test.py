"""What a method learns gets a gradient: finite, and not zero."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from tiny import some_slow

import evovit_jax
from evovit_jax import reduction
from evovit_jax.models import abstract_model

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 4, "num_heads": 3}


def learns(method):
    """Whether a method has parameters."""
    model = abstract_model("deit_tiny_patch16_224", method, **TINY)
    return bool(nnx.to_flat_state(nnx.state(model.reducer, nnx.Param)))


LEARNED = {
    "cropr",
    "dpcknn",
    "dtem",
    "dtps",
    "dynamicvit",
    "ia_red2",
    "ltmp",
    "patchmerger",
    "prune_and_merge",
    "sinkhorn",
    "sit",
    "svite",
    "tokenlearner",
}
# What begins to learn in the first step, where a method's defaults reduce nothing yet.
SETTINGS = {"ltmp": ",merge_threshold=0.2"}


@pytest.mark.slow
def test_every_method_that_learns_is_here():
    assert {method for method in reduction.list_reductions() if learns(method)} == LEARNED


@pytest.mark.parametrize("method", some_slow(sorted(LEARNED), {"sinkhorn"}))
def test_every_parameter_learns(method):
    # A head on the mean of the patches: a class token does not see what the last block merges.
    name = "evo_deit_tiny_patch16_224"
    spec = method + SETTINGS.get(method, "")
    model = evovit_jax.create_model(name, spec, **TINY, num_classes=5, seed=3)
    images = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))

    def loss(model):
        logits, out = model(images, train=True, key=jax.random.key(1))
        heads = [logits, *out.aux_logits.values()]
        on_labels = -sum(jax.nn.log_softmax(each)[:, 0].mean() for each in heads)
        return on_labels + sum(out.losses.values())

    gradients = nnx.jit(nnx.grad(loss))(model)["reducer"]
    for path, gradient in nnx.to_flat_state(gradients):
        assert bool(jnp.isfinite(gradient[...]).all()), path
        assert bool((gradient[...] != 0).any()), path
