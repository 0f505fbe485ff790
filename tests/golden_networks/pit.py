"""PiT, plain and distilled."""

from typing import Any

import jax
from flax import nnx

from evovit_jax.models.outputs import Outputs
from evovit_jax.models.pit import PiT, PiTConfig
from golden_networks import unfilled
from golden_networks.stage_maps import stage_map


def network(sizes: dict[str, Any], reducer: dict[str, Any]) -> PiT:
    """The network of a file."""
    size = sizes.pop("image_size")
    names = ("patch_size", "stride", "mlp_ratio", "num_classes", "qkv_bias")
    heads = tuple(sizes.pop("num_heads"))
    config = PiTConfig(
        image_size=size if isinstance(size, int) else tuple(size),
        **{name: sizes.pop(name) for name in names},
        embed_dim=tuple(w * n for w, n in zip(sizes.pop("base_dims"), heads, strict=True)),
        depth=tuple(sizes.pop("depth")),
        num_heads=heads,
        distilled=sizes.pop("distilled"),
        norm_eps=sizes.pop("layer_norm_eps"),
    )
    head = "norm of the class token(s), linear"
    fixed = {
        "activation": "gelu_erf",
        "positions": "added to the patch map only, at the input",
        "pooling": "convolution of size 3, stride 2, padding 1, one group an input channel (output "
        "o reads input o // (outputs / inputs)); class tokens by their own linear map",
        "head": head + (" each, the mean of both" if config.distilled else ""),
    }
    assert {name: sizes.pop(name) for name in fixed} == fixed
    return unfilled(lambda: PiT(config, reducer, rngs=nnx.Rngs(0)))


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """The patches of a stage, class tokens after the norm, or what every family has."""
    if output["value"] == "class token(s) after the last norm":
        rows, columns = stage_map("map of the last stage, NHWC", out).shape[1:3]
        return out.features[:, : out.features.shape[1] - rows * columns]
    return stage_map(output["value"], out)
