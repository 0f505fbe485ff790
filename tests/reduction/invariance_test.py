"""An image keeps the same tokens in whatever company: any batch, place in it, size and sharding.

Exactly in float32 as well as in bfloat16: scores of two tokens that are equal to the last bit would
be needed for a difference, since the products of an image do not depend on the others.
"""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import evovit_jax
from evovit_jax import reduction
from evovit_jax.parallel import inference_program

SIZES = {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3}
CASES = [
    f"{name}-{dtype}" for name in reduction.list_reductions() for dtype in ("float32", "bfloat16")
]


def tokens_of(model, images, mesh=None):
    """The logits and the place of every input token after each block."""
    look = lambda images: (lambda logits, out: (logits, out.token_maps))(*model(images))  # noqa: E731
    run = inference_program.jitted(look)
    if mesh is not None:
        images = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
        with jax.set_mesh(mesh):
            return jax.device_get(run(images))
    return jax.device_get(run(images))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_image_keeps_its_tokens_in_any_company(case):
    spec, dtype = case.split("-")
    model = evovit_jax.create_model(
        "deit_tiny_patch16_224", spec, num_classes=5, seed=3, dtype=dtype, **SIZES
    )
    for block in model.blocks:  # attention that prefers some tokens
        block.attn.qkv.kernel[...] = block.attn.qkv.kernel[...] * 10
    for slimmer in model.reducer.cluster_layers if spec == "sit" else ():  # and mixtures likewise
        slimmer.scale[...] = slimmer.scale[...] * 1000
    images = 2 * jax.random.normal(jax.random.key(7), (8, 32, 32, 3))
    logits, maps = tokens_of(model, images)
    turned = tokens_of(model, images[::-1])
    few = [tokens_of(model, images[first : first + 2]) for first in (0, 2, 4, 6)]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    spread = tokens_of(model, images, mesh)
    others = [
        (turned[0][::-1], [places[::-1] for places in turned[1]]),
        jax.tree.map(lambda *parts: np.concatenate(parts), *few),
        spread,
    ]
    for found_logits, found in others:
        for places, wanted in zip(found, maps, strict=True):
            np.testing.assert_array_equal(places, wanted)
        np.testing.assert_allclose(found_logits, logits, atol=2e-5, rtol=1e-4)
