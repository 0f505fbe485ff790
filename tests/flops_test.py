"""MACs: published figures, the formula against the traced program, and against XLA's own count."""

import flops_formula
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from tiny import some_slow

from evovit_jax import flops, list_models
from evovit_jax.models import abstract_model, activations, model_entry
from evovit_jax.models.encoder import Encoder
from evovit_jax.models.levit import LeViT
from evovit_jax.models.vit import VisionTransformer

# Those that the formula knows; the others are held to published counts, in registry_test.py and
# encoder_table_test.py.
TOKEN_MODELS = [
    name
    for name in list_models()
    if issubclass(model_entry(name).model, (VisionTransformer, LeViT))
    and model_entry(name).model is not Encoder
]
# The official Evo-ViT on DeiT has no representative token.
OFFICIAL_EVO = {
    "evo_deit_tiny_patch16_224": 0.818,
    "evo_deit_small_patch16_224": 3.033,
    "evo_deit_base_patch16_224": 11.658,
    "evo_deit_small_patch16_384": 9.881,
    "evo_deit_base_patch16_384": 36.112,
}
REDUCED = {
    "dynamicvit,keep_rate=0.7": 2.981,
    "evit,keep_rate=0.9": 4.022,
    "evit,keep_rate=0.7": 3.029,
    "evit,keep_rate=0.5": 2.309,
    "evit,keep_rate=0.7,fuse=false": 2.997,
    "evit,keep_rate=0.5,fuse=false": 2.282,
}
# One of each kind in the quick run: tracing a network takes seconds.
QUICK = {"deit_tiny_patch16_224", "evo_levit_128s", "lvvit_s", "evo_deit_tiny_patch16_224"}
QUICK |= {"evit,keep_rate=0.7", "evo", "tome", "dynamicvit", "dpcknn"}
TINY = {"image_size": 64, "embed_dim": 48, "num_heads": 3, "depth": 6, "num_classes": 7}


@pytest.mark.parametrize("name", some_slow(OFFICIAL_EVO, QUICK))
def test_evo_costs_what_was_measured(name):
    found = flops.gmacs(abstract_model(name, "evo,representative_token=false"))
    assert found == pytest.approx(OFFICIAL_EVO[name], rel=0.01)


@pytest.mark.parametrize("reduction", some_slow(REDUCED, QUICK))
def test_reductions_cost_what_was_measured(reduction):
    found = flops.gmacs(abstract_model("deit_small_patch16_224", reduction))
    assert found == pytest.approx(REDUCED[reduction], rel=0.01)


def agree(model) -> flops_formula.ModelMacs:
    """The formula's count, after comparing it with the traced program's."""
    counted = flops_formula.count(model)
    assert counted.total == round(flops.gmacs(model) * 1e9)
    return counted


@pytest.mark.parametrize("name", some_slow(TOKEN_MODELS, QUICK))
def test_the_formula_counts_each_model_as_its_program_does(name):
    counted = agree(abstract_model(name))
    assert counted.embed > 0
    assert counted.head > 0
    assert all(block.attention > 0 and block.feed_forward > 0 for block in counted.blocks)


@pytest.mark.parametrize("reduction", some_slow(flops_formula.REDUCTIONS, QUICK))
def test_the_formula_counts_each_reduction_as_its_program_does(reduction):
    model = abstract_model("deit_tiny_patch16_224", reduction, **TINY)
    assert len(agree(model).blocks) == 6


@pytest.mark.parametrize(
    "reduction",
    some_slow(["evo,selection=layer", "evit,keep_rate=0.5", "tome,r=8"], {"evo,selection=layer"}),
)
def test_the_formula_counts_reductions_in_a_pyramid(reduction):
    model = abstract_model("evo_levit_128s", reduction)
    # Merged tokens are pooled by their sizes: a sum of a few tokens that the formula leaves out.
    found = flops.gmacs(model) * 1e9
    assert flops_formula.count(model).total == pytest.approx(found, rel=1e-5)


def test_the_formula_counts_a_block_at_a_time():
    counted = flops_formula.count(abstract_model("evo_deit_small_patch16_224"))
    dense, first_slow, slow = (counted.blocks[i] for i in (3, 4, 5))
    assert dense.tokens.attention == 197
    assert dense.attention == 4 * 197 * 384**2 + 2 * 197**2 * 384
    assert slow.tokens.attention == 100  # class, 98 of 196 patches, representative
    assert slow.feed_forward == 8 * 100 * 384**2
    assert first_slow.total - slow.total == 196 * 384  # the representative token's sum


def test_other_image_sizes_count_more():
    model = abstract_model("deit_small_patch16_224")
    assert flops_formula.count(model, image_size=384).total == 15_490_351_104
    # The program also interpolates the positions, once a batch.
    assert flops.gmacs(model, image_size=384) == pytest.approx(15.490, rel=1e-3)


# name, reduction, settings; of real width, since the compiler also counts sums and comparisons.
COMPILED = [
    ("deit_small_patch16_224", "none", {}),
    ("evo_deit_small_patch16_224", "evo", {}),
    ("deit_small_patch16_224", "evit,locations=1:", {"depth": 3}),
    ("deit_small_patch16_224", "tome", {"depth": 3}),
    ("levit_256", "none", {}),
    ("evo_levit_256", "evo", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reduction", "settings"), COMPILED)
def test_the_count_agrees_with_the_compiler(name, reduction, settings, monkeypatch):
    # To the compiler an exact GELU is a polynomial of forty operations an element: 3 % of all.
    monkeypatch.setitem(activations.ACTIVATIONS, "gelu", jax.nn.relu)
    model = abstract_model(name, reduction, **settings)
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    compiled = jax.jit(lambda s, x: nnx.merge(graphdef, s)(x)[0]).lower(state, images).compile()
    assert compiled.cost_analysis()["flops"] / 2e9 == pytest.approx(flops.gmacs(model), rel=0.01)


def test_only_what_the_result_needs_counts():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))

    def used_and_unused(a, b):
        _ = jnp.exp(a) @ b
        return jax.lax.fori_loop(0, 4, lambda _, x: x @ jnp.ones((5, 5)), a)

    assert flops.macs_of(lambda a, b: a @ b, a, b) == 3 * 5 * 7
    assert flops.macs_of(used_and_unused, a, b) == 4 * 3 * 5 * 5


def test_a_convolution_counts_its_window():
    image, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 2, 12))

    def grouped(image, kernel):
        return jax.lax.conv_general_dilated(
            image,
            kernel,
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )

    assert flops.macs_of(grouped, image, kernel) == 2 * 4 * 4 * 12 * 9 * 2
