"""DINOv3 of bonsai (github.com/jax-ml/bonsai); its ViT is built of Flax's own attention.

Its blocks are called with the cosines and sines of every patch; here tokens take theirs along.
bonsai turns queries and keys in bfloat16, here it is done in float32.

Tested in tests/adapters/bonsai_test.py.
"""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.adapters.adapter import Adapter
from evovit_jax.adapters.attention import attend_heads
from evovit_jax.models.rotary import at_places
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import TokenSet


def adapter(module: nnx.Module) -> Adapter | None:
    """The adapter of bonsai's DINOv3, None for another module."""
    if not all(hasattr(module, name) for name in ("embeddings", "rope_embeddings", "layer")):
        return None
    config = module.config
    side = config.image_size // config.patch_size[0]
    return Adapter(
        blocks="layer",
        attention="attention",
        prefix=1 + config.num_register_tokens,
        grid=(side, side),
        width=config.hidden_size,
        heads=config.num_attention_heads,
        attend=attention,
        rotary=True,
    )


def attention(
    module: nnx.Module,
    request: AttentionRequest,
    tokens: TokenSet,
    x: Float[Array, "b n d"],
    turns: tuple[Float[Array, "p c"], Float[Array, "p c"]],
) -> tuple[Float[Array, "b n d"], AttentionView]:
    """Its attention under a request; `turns` are the cosines and sines of the input's patches."""
    x = x if request.edit is None else request.edit(x)
    heads = module.config.num_attention_heads
    projections = (module.q_proj, module.k_proj, module.v_proj)
    q, k, v = (project(x).reshape(*x.shape[:2], heads, -1) for project in projections)
    rotation = at_places(*turns, tokens.place, prefix=tokens.prefix, neighbours=False)
    mixed, view = attend_heads(q, k, v, request, rotation)
    if "inputs" in request.needs:
        view = dataclasses.replace(view, inputs=x)
    return module.o_proj(mixed.reshape(x.shape)), view
