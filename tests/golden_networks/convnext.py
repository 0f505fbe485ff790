"""ConvNeXt, dense and sparsified: two descriptions of the same network."""

from typing import Any

import jax
from flax import nnx

from evovit_jax.models.convnext import ConvNeXt, ConvNeXtConfig
from evovit_jax.models.outputs import Outputs
from golden_networks import unfilled
from golden_networks.spatial import spatial_value

ACTIVATIONS = {"gelu_erf": "gelu", "erf": "gelu", "gelu_tanh": "gelu_tanh", "tanh": "gelu_tanh"}
# What cannot be anything else here; a file says some of it.
FIXED = {
    "downsampling": "norm over channels, then 2x2 convolution of stride 2, floor",
    "head": "global mean, norm, linear",
    "head_norm": "after the mean over the map",
}


def network(
    sizes: dict[str, Any], reducer: dict[str, Any], activation: str | None = None
) -> ConvNeXt:
    """The network of a file."""
    patch = sizes.pop("patch_size")
    words = sizes.pop("activation") if "activation" in sizes else sizes.pop("gelu")
    config = ConvNeXtConfig(
        image_size=sizes.pop("image_size"),
        patch_size=patch,
        num_classes=sizes.pop("num_classes"),
        embed_dim=tuple(sizes.pop("dims")),
        depth=tuple(sizes.pop("depths")),
        kernel_size=sizes.pop("kernel_size"),
        mlp_ratio=sizes.pop("mlp_ratio"),
        activation=ACTIVATIONS[activation or words],
        layer_scale=1e-6 if sizes.pop("layer_scale") else None,
        norm_eps=sizes.pop("layer_norm_eps"),
    )
    stem = f"{patch}x{patch} convolution of stride {patch}, then a norm over channels"
    for name, value in {**FIXED, "stem": stem}.items():
        assert sizes.pop(name, value) == value
    return unfilled(lambda: ConvNeXt(config, reducer, rngs=nnx.Rngs(0)))


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """A map, or a part of a sparsified pass, positions as a map."""
    del logits
    found = spatial_value(output, out)
    if found is None or found.ndim != 3 or "path" in output["value"]:
        return found
    maps = (places for name, places in out.aux.items() if name.startswith("stage"))
    shapes = {(x.shape[0], x.shape[1] * x.shape[2], x.shape[3]): x.shape for x in maps}
    return found.reshape(shapes[found.shape])
