"""TokenLearner's ViT: scenic's network, and its tokens."""

from typing import Any

import jax
from flax import nnx

from evovit_jax.models.outputs import Outputs
from evovit_jax.models.tokenlearner_vit import TokenLearnerViT, TokenLearnerViTConfig

# What cannot be anything else here.
FIXED = {"gelu": "tanh", "class_token": False, "pool": "avg", "representation_size": None}
NAMES = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")


def network(sizes: dict[str, Any], reducer: dict[str, Any]) -> TokenLearnerViT:
    """The network of a file."""
    assert {name: sizes.pop(name) for name in FIXED} == FIXED
    hidden, width = sizes.pop("mlp_dim"), sizes["embed_dim"]
    config = TokenLearnerViTConfig(
        **{name: sizes.pop(name) for name in NAMES},
        mlp_ratio=hidden / width,
        norm_eps=sizes.pop("layer_norm_eps"),
    )
    assert int(config.embed_dim * config.mlp_ratio) == hidden
    return TokenLearnerViT(config, reducer, rngs=nnx.Rngs(0))


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """What an output is; None for what all networks have."""
    del logits
    return out.features if output.get("value") == "tokens after the last norm" else None
