"""The networks of LTMP's golden file, one for each order, and what its outputs are."""

from typing import Any

import jax
from flax import nnx

from evovit_jax.models.outputs import Outputs
from evovit_jax.models.vit import VisionTransformer, ViTConfig
from evovit_jax.reduction.ltmp import ORDERS


def network(sizes: dict[str, Any], reducer: dict[str, Any]) -> VisionTransformer:
    """The network of an output, of `sizes` out of which everything is taken."""
    names = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    fields = {name: sizes.pop(name) for name in (*names, "mlp_ratio")}
    config = ViTConfig(**fields, norm_eps=sizes.pop("layer_norm_eps"))
    assert sizes.pop("gelu") == "erf"
    return VisionTransformer(config, reducer, rngs=nnx.Rngs(0))


def spare(reducer: dict[str, Any]) -> str | bool:
    """The thresholds in the file that a network of one step, or of none, has no use for."""
    steps = ORDERS[reducer["order"]][0] if reducer["name"] == "ltmp" else ()
    unused = [step for step in ("merge", "prune") if step not in steps]
    return rf"blocks\.\d+\.({'|'.join(unused)})_masker\.threshold" if unused else False


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """The part of a pass that an output is."""
    words = output.get("value", "logits")
    if "1 for a token that counts after the last block" in words:
        return out.aux["mask"].astype(int)
    if words.startswith("the budget loss"):
        return out.losses["budget"]
    return logits if words == "logits" else None
