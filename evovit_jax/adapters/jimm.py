"""Towers of jimm (github.com/pythoncrazy/jimm): its ViT, and those inside CLIP, SigLIP and DINO.

First their blocks were a sequence; from 0.3 on they are one block that is scanned, whose variables
have an axis of all blocks in front.

Tested in tests/adapters/jimm_test.py.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.adapters.adapter import Adapter
from evovit_jax.adapters.attention import flax_attention
from evovit_jax.adapters.tower import Walking
from evovit_jax.models.rotary import rotation_of
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import TokenSet


def adapter(module: nnx.Module) -> Adapter | None:
    """The adapter of a jimm tower, None for another module."""
    if not all(hasattr(module, name) for name in ("patch_embeddings", "pooling_type", "ln_post")):
        return None
    prefix = sum(token.shape[1] for token in _first_tokens(module))
    rotary = getattr(module, "use_rope", False)
    if rotary:
        side = module.img_size // module.patch_size
    else:
        side = math.isqrt(module.position_embeddings.shape[1] - min(prefix, 1))
    stacked = hasattr(module, "layers")
    return Adapter(
        blocks="layers" if stacked else "transformer.blocks.layers",
        attention="attn",
        prefix=prefix,
        grid=(side, side),
        attend=functools.partial(turning, module.rope_theta) if rotary else flax_attention,
        pool=next((name for name in ("MAPHead", "map_head") if hasattr(module, name)), None),
        rotary=rotary,
        stacked=stacked,
        forward=forward if stacked else None,
    )


def _first_tokens(tower: nnx.Module) -> list[nnx.Param]:
    """The class token and the registers of a tower, those that it has."""
    tokens = (getattr(tower, name, None) for name in ("cls_token", "register_tokens"))
    return [token for token in tokens if token is not None]


def turning(
    temperature: float,
    attention: nnx.MultiHeadAttention,
    request: AttentionRequest,
    tokens: TokenSet,
    x: Float[Array, "b n d"],
    **kwargs: Any,
) -> tuple[Float[Array, "b n d"], AttentionView]:
    """The attention of a tower with rotary positions, which a block is else called with."""
    rotation = rotation_of(
        "dinov3",
        tokens.place,
        prefix=tokens.prefix,
        grid=tokens.grid,
        head_dim=attention.head_dim,
        temperature=temperature,
        reference=tokens.grid,
    )
    return flax_attention(attention, request, tokens, x, rotation=rotation, **kwargs)


def forward(
    tower: nnx.Module, walking: Walking, images: Float[Array, "b h w c"]
) -> Float[Array, "b d"]:
    """The call of a tower whose blocks are scanned."""
    x = tower.patch_embeddings(images)
    x = x.reshape(len(x), -1, x.shape[-1])
    first = [jnp.tile(token[...], (len(x), 1, 1)) for token in _first_tokens(tower)]
    x = jnp.concatenate([*first, x], axis=1)
    if not tower.adapter.rotary:
        x = x + tower.position_embeddings[...]
    x = tower.ln_pre(x) if tower.use_pre_norm else tower.dropout(x)
    x = tower.ln_post(walking(x))
    return x[:, 0] if tower.adapter.pool is None else walking.pool(x)
