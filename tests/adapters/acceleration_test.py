"""accelerate on any model of Flax's own attention: what it keeps, what it refuses, how it says so.

docs/accelerate.md, whose code runs here, has a model that an adapter is written for.
"""

import pathlib
import re

import jax
import numpy as np
import pytest
from adapters.as_ours import copy_jimm_blocks, copy_linear, copy_norm, copy_patches, encoder
from adapters.other_libraries import (
    CLASSES,
    DEPTH,
    SIDE,
    WIDTH,
    BonsaiViT,
    JimmBlock,
    JimmCLIP,
    JimmTransformer,
    JimmViT,
)
from flax import nnx

import evovit_jax
from evovit_jax.adapters import Adapter, accelerate, acceleration, with_token_maps
from evovit_jax.errors import UserError
from evovit_jax.models.deit import MODELS

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "accelerate.md"
IMAGES = jax.random.normal(jax.random.key(0), (2, SIDE, SIDE, 3))
PATCHES = (SIDE // 4) ** 2


class Averaging(nnx.Module):
    """Blocks in a list of its own, positions in a table, and the mean of all tokens."""

    def __init__(self, rngs: nnx.Rngs, by_number: bool = False):
        self.by_number = by_number
        self.stem = nnx.Conv(3, WIDTH, (4, 4), strides=(4, 4), rngs=rngs)
        self.pos = nnx.Embed(PATCHES, WIDTH, rngs=rngs)
        self.trunk = JimmTransformer(rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.stem(images).reshape(len(images), -1, WIDTH) + self.pos.embedding[None]
        if self.by_number:
            for i in range(DEPTH):
                x = self.trunk.blocks.layers[i](x)
        else:
            x = self.trunk(x)
        return self.head(self.norm(x.mean(axis=1)))


class PostNorm(JimmBlock):
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm2(x + self.mlp(self.norm1(x + self.attn(x))))


@pytest.mark.slow
def test_a_mean_over_all_tokens_counts_merged_ones_by_size():
    model = Averaging(nnx.Rngs(0))
    output, maps = jax.jit(with_token_maps(accelerate(model, "tome,r=5")))(IMAGES)
    assert [int(m.max()) + 1 for m in maps] == [31, 26, 21, 21]
    ours = encoder("tome,r=5", class_token=False, pool="avg")
    copy_patches(ours, model.stem)
    ours.pos_embed[...] = model.pos.embedding[...][None]
    copy_jimm_blocks(ours, model.trunk)
    copy_norm(ours.fc_norm, model.norm)
    copy_linear(ours.head, model.head)
    expected, _ = jax.jit(ours)(IMAGES)
    np.testing.assert_allclose(output, expected, atol=1e-4, rtol=0)


def test_the_copy_is_of_the_same_kind():
    model = BonsaiViT(nnx.Rngs(0))
    before = nnx.to_flat_state(nnx.state(model))
    faster = evovit_jax.accelerate(model, "tome,r=5")
    assert type(model) is BonsaiViT
    assert isinstance(faster, BonsaiViT)
    after = nnx.to_flat_state(nnx.state(faster))
    assert [path for path, _ in before] == [path for path, _ in after]
    assert all(a.get_value() is b.get_value() for (_, a), (_, b) in zip(before, after, strict=True))
    faster.classifier.bias[...] += 1
    assert (model.classifier.bias[...] != faster.classifier.bias[...]).all()


def test_it_can_be_split_and_accelerated_again():
    model = JimmViT(rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(accelerate(model, "tome,r=5"))
    assert hash(graphdef) == hash(nnx.graphdef(nnx.merge(graphdef, state)))

    def tokens(state):
        _, maps = with_token_maps(nnx.merge(graphdef, state))(IMAGES)
        return maps[-1]

    assert jax.jit(tokens)(state).max() == PATCHES - 15
    again = accelerate(nnx.merge(graphdef, state), "none")
    assert type(again.encoder) is type(nnx.merge(graphdef, state).encoder)
    _, maps = jax.jit(with_token_maps(again))(IMAGES)
    np.testing.assert_array_equal(maps[-1][0], np.arange(PATCHES + 1))


def test_learned_parameters_are_made_with_rngs():
    model = JimmViT(rngs=nnx.Rngs(0))
    reduction = "dynamicvit,locations=1,keep_rate=0.5"
    with pytest.raises(UserError, match="give accelerate rngs"):
        accelerate(model, reduction)
    faster = accelerate(model, reduction, rngs=nnx.Rngs(0))
    learned = nnx.to_flat_state(nnx.state(faster.encoder.reducer, nnx.Param))
    assert len(learned) > 2


def refused(model, reduction="tome,r=2", **settings):
    with pytest.raises(UserError) as error:
        accelerate(model, reduction, **settings)
    return str(error.value)


def test_what_is_no_image_model_is_refused():
    assert "NNX model, not a dict" in refused({"kernel": np.zeros(3)})
    assert "no adapter for flax.nnx.nn.linear.Linear" in refused(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert "docs/accelerate.md" in refused(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    both = nnx.List([JimmTransformer(nnx.Rngs(0)), JimmTransformer(nnx.Rngs(0))])
    assert "several lists of blocks" in refused(both)
    assert "prefix=CLASS_TOKENS" in refused(JimmTransformer(nnx.Rngs(0)))
    small = dict(next(iter(MODELS.values())).model.smoke)
    ours = evovit_jax.create_model("deit_tiny_patch16_224", **small)
    assert "create_model(NAME, reduction=...)" in refused(ours)


def test_what_blocks_cannot_be_split_is_refused():
    model = Averaging(nnx.Rngs(0))
    model.trunk.blocks.layers = nnx.List([PostNorm(nnx.Rngs(0)) for _ in range(2)])
    assert "PostNorm computes something else" in refused(model)
    masked = JimmCLIP(rngs=nnx.Rngs(0)).text_model
    assert "mask" in refused(masked, prefix=0, grid=(2, 3))


def test_a_call_that_cannot_be_walked_is_refused():
    with pytest.raises(UserError, match="by their number"):
        jax.eval_shape(accelerate(Averaging(nnx.Rngs(0), by_number=True), "tome,r=2"), IMAGES)
    wrong = accelerate(Averaging(nnx.Rngs(0)), "tome,r=2", prefix=2, grid=(6, 6))
    with pytest.raises(UserError, match="has 36 tokens, not 2 and a grid of 6 x 6"):
        jax.eval_shape(wrong, IMAGES)
    dropping = accelerate(JimmViT(dropout=0.1, rngs=nnx.Rngs(0)), "tome,r=2")
    with pytest.raises(UserError, match="is on, under which tokens cannot be reduced"):
        nnx.eval_shape(lambda model: model(IMAGES), dropping)
    dropping.eval()
    assert jax.eval_shape(dropping, IMAGES).shape == (2, CLASSES)


def test_token_maps_are_of_one_tower():
    with pytest.raises(UserError, match="0 accelerated towers ran"):
        with_token_maps(lambda: 1)()
    faster = accelerate(JimmViT(rngs=nnx.Rngs(0)), "tome,r=2")
    with pytest.raises(UserError, match="wrap it before"):
        with_token_maps(jax.jit(faster))(IMAGES)


def test_the_document(monkeypatch):
    """Its adapter's model is the same without a reduction, and has fewer tokens with one."""
    monkeypatch.setattr(acceleration, "_adapters", list(acceleration._adapters))
    names = {"__name__": "document"}
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    exec(compile("\n".join(code), str(DOCUMENT), "exec"), names)
    assert isinstance(names["adapter"], Adapter)
    assert names["cosine"] > 0.5
    assert names["counts"] == [58, 52, 52]
