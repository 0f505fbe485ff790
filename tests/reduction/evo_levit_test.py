"""Evo-ViT in a pyramid: where it selects, what it carries, what it weighs.

That Evo-LeViT computes what the official code computes is in parity_test.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.reduction import Backbone, create_reducer, token_counts
from evovit_jax.reduction.base import AttentionView
from evovit_jax.reduction.tokens import start_tokens

TINY = {
    "image_size": 80,  # 25 patch tokens, then 9
    "embed_dim": (16, 24),
    "key_dim": 4,
    "num_heads": (2, 3),
    "depth": (3, 2),
    "num_classes": 5,
}
BACKBONE = Backbone(
    depth=5, dim=(16, 24), heads=(2, 3), grid=(5, 5), prefix=1, stage_depths=(3, 2), stride=2
)


def reducer(spec="evo"):
    return create_reducer(spec, BACKBONE, rngs=nnx.Rngs(0))


def tokens(batch=2, grid=(5, 5), **changes):
    n = 1 + grid[0] * grid[1]
    x = jax.random.normal(jax.random.key(0), (batch, n, 16))
    return start_tokens(x, prefix=1, grid=grid).replace(**changes)


def view(batch=2, heads=2, n=26, seed=1):
    logits = jax.random.normal(jax.random.key(seed), (batch, heads, n))
    return AttentionView(class_row=jax.nn.softmax(logits, axis=-1))


def sizes_at(spec):
    """Tokens in the attention of each block."""
    return [count.attention for count in token_counts.count(reducer(spec), (5, 5))]


def test_a_stage_selects_once_and_a_layer_every_time():
    # 12 of 25 and 4 of 9 patch tokens, the class and the representative token.
    assert sizes_at("evo,first_block=1") == [26, 14, 14, 6, 6]
    assert sizes_at("evo,first_block=1,selection=layer") == [26, 14, 14, 6, 6]
    borders = [reducer("evo,first_block=1").selects(i) for i in range(5)]
    assert borders == [False, True, False, True, False]
    borders = [reducer("evo,first_block=1,selection=layer").selects(i) for i in range(5)]
    assert borders == [False, True, True, True, True]


def test_the_first_stage_may_be_dense_and_rates_differ():
    assert sizes_at("evo,first_block=3") == [26, 26, 26, 6, 6]
    assert sizes_at("evo,first_block=1,keep_rate=0.8:0.25") == [26, 22, 22, 4, 4]
    assert sizes_at("evo,representative_token=false,first_block=1") == [26, 13, 13, 5, 5]
    assert sizes_at("evo,first_block=1,keep_multiple=4") == [26, 16, 16, 8, 8]


def test_with_every_token_kept_it_is_the_dense_network():
    images = jax.random.normal(jax.random.key(3), (2, 80, 80, 3))
    dense = evovit_jax.create_model("evo_levit_128s", "none", **TINY, seed=1)
    kept = evovit_jax.create_model("evo_levit_128s", "evo,keep_rate=1.0", **TINY, seed=1)
    expected = jax.jit(lambda x: dense(x)[0])(images)
    np.testing.assert_allclose(jax.jit(lambda x: kept(x)[0])(images), expected, atol=1e-6)


def test_the_first_block_sets_the_scores_and_the_next_average_them():
    evo = reducer()
    first = evo.after_attention(0, tokens(), view(seed=1))
    np.testing.assert_allclose(first.scores, view(seed=1).class_row[:, :, 1:].mean(1), rtol=1e-6)
    evo.tradeoff[...] = jnp.array([9.0, -1.0, 9.0, 9.0, 9.0, 9.0])  # number 1 is block 1's
    second = evo.after_attention(1, first, view(seed=2))
    weight = 1 / (1 + np.exp(1.0))
    expected = (1 - weight) * first.scores + weight * view(seed=2).class_row[:, :, 1:].mean(1)
    np.testing.assert_allclose(second.scores, expected, rtol=1e-5)
    fixed = evo.override(tradeoff="fixed", alpha=0.25).after_attention(1, first, view(seed=2))
    expected = 0.75 * first.scores + 0.25 * view(seed=2).class_row[:, :, 1:].mean(1)
    np.testing.assert_allclose(fixed.scores, expected, rtol=1e-5)


def test_a_subsampling_takes_every_other_score_and_keeps_their_sum():
    evo = reducer("evo,tradeoff=fixed")
    before = tokens(scores=jax.random.uniform(jax.random.key(5), (2, 25)))
    after = evo.subsample(before, view(), 2, stage=0)
    assert after.scores.shape == (2, 9)
    places = np.arange(25).reshape(5, 5)[::2, ::2].ravel()
    attention = np.array(view().class_row[:, :, 1:].mean(1))[:, places]
    expected = 0.5 * np.array(before.scores)[:, places] + 0.5 * attention
    expected *= np.array(before.scores).sum(1, keepdims=True) / expected.sum(1, keepdims=True)
    np.testing.assert_allclose(after.scores, expected, rtol=1e-5)
    np.testing.assert_allclose(after.scores.sum(1), before.scores.sum(1), rtol=1e-5)


def test_each_attention_has_its_own_tradeoff():
    evo = reducer()
    evo.tradeoff[...] = jnp.arange(6.0)  # three blocks, a subsampling, two blocks
    weights = jnp.stack([evo.weight(block) for block in range(5)])
    np.testing.assert_allclose(weights, jax.nn.sigmoid(jnp.array([0.0, 1, 2, 4, 5])), rtol=1e-6)
    # The third is the subsampling's: another value of it, another result.
    start = tokens(scores=jax.random.uniform(jax.random.key(5), (2, 25)))
    one = evo.subsample(start, view(), 2, stage=0).scores
    evo.tradeoff[...] = jnp.arange(6.0).at[3].set(-3.0)
    assert not np.allclose(one, evo.subsample(start, view(), 2, stage=0).scores)


def test_class_attention_is_asked_for_only_where_a_selection_follows():
    asked = [bool(reducer().attention_request(i, tokens()).needs) for i in range(5)]
    assert asked == [True, True, True, False, False]  # the last stage selects before block 3
    layers = reducer("evo,selection=layer")
    asked = [bool(layers.attention_request(i, tokens()).needs) for i in range(5)]
    assert asked == [True, True, True, True, False]
    assert reducer().subsample_request(0, tokens()).needs == {"class_row"}


def test_learned_tradeoffs_get_a_gradient_where_scores_matter():
    model = evovit_jax.create_model("evo_levit_128s", "evo,first_block=1", **TINY, seed=1)
    for _, module in nnx.iter_modules(model):
        if hasattr(module, "proj") and hasattr(module.proj, "bn"):
            module.proj.bn.scale[...] = jnp.ones_like(module.proj.bn.scale[...])
    graphdef, tradeoff, rest = nnx.split(
        model, lambda path, _: path == ("reducer", "tradeoff"), ...
    )
    images = jax.random.normal(jax.random.key(3), (2, 80, 80, 3))

    def loss(tradeoff):
        return nnx.merge(graphdef, tradeoff, rest)(images)[0].sum()

    (gradient,) = jax.tree.leaves(jax.jit(jax.grad(loss))(tradeoff))
    changed = np.array(gradient) != 0
    assert not changed[0]  # nothing to average with before the first block
    assert changed[3]  # the subsampling weighs the representative token of the last stage
    assert not changed[4:].any()  # nothing selects after it


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("evo,keep_rate=0.5:0.5:0.5", "3 members for 2 stages"),
        ("evo,keep_rate=0", "keep_rate must be"),
        ("evo,selection=block", "selection must be stage or layer"),
        ("evo,tradeoff=random", "tradeoff must be learned or fixed"),
        ("evo,stages=1:", "no field 'stages'"),
    ],
)
def test_bad_settings_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        reducer(spec)


@pytest.mark.parametrize("block", [-3, 99])
def test_a_first_block_that_is_not_there(block):
    with pytest.raises(UserError, match="evo first_block"):
        reducer(f"evo,first_block={block}")


def test_settings_for_a_call_must_fit_the_network_too():
    with pytest.raises(UserError, match="evo keep_rate has 1 members for 2 stages"):
        reducer().override(keep_rate=(0.5,))
    with pytest.raises(UserError, match=r"evo first_block must be in 0\.\.5"):
        reducer().override(first_block=6)
