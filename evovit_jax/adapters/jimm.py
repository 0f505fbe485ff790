"""Towers of jimm (github.com/pythoncrazy/jimm): its ViT, and those inside its CLIP and SigLIP.

First their blocks were a sequence; from 0.3 on they are one block that is scanned, whose variables
have an axis of all blocks in front.

Tested in tests/adapters/jimm_test.py.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.adapters.adapter import Adapter
from evovit_jax.adapters.tower import Walking


def adapter(module: nnx.Module) -> Adapter | None:
    """The adapter of a jimm tower, None for another module."""
    if not all(hasattr(module, name) for name in ("patch_embeddings", "pooling_type", "ln_post")):
        return None
    tokens = (getattr(module, name, None) for name in ("cls_token", "register_tokens"))
    prefix = sum(token.shape[1] for token in tokens if token is not None)
    side = math.isqrt(module.position_embeddings.shape[1] - prefix)
    pool = next((name for name in ("MAPHead", "map_head") if hasattr(module, name)), None)
    stacked = hasattr(module, "layers")
    return Adapter(
        blocks="layers" if stacked else "transformer.blocks.layers",
        attention="attn",
        prefix=prefix,
        grid=(side, side),
        pool=pool,
        stacked=stacked,
        forward=forward if stacked else None,
    )


def forward(
    tower: nnx.Module, walking: Walking, images: Float[Array, "b h w c"]
) -> Float[Array, "b d"]:
    """The call of a tower with scanned blocks."""
    x = tower.patch_embeddings(images)
    x = x.reshape(len(x), -1, x.shape[-1])
    tokens = [getattr(tower, name, None) for name in ("cls_token", "register_tokens")]
    tokens = [jnp.tile(token[...], (len(x), 1, 1)) for token in tokens if token is not None]
    x = jnp.concatenate([*tokens, x], axis=1) + tower.position_embeddings[...]
    x = tower.ln_pre(x) if tower.use_pre_norm else tower.dropout(x)
    x = tower.ln_post(walking(x))
    return x[:, 0] if tower.adapter.pool is None else walking.pool(x)
