"""CrossViT (Chen et al., 2021): two ViTs, on small and on large patches, whose class tokens meet.

Branch 0 sees small patches of the image, branch 1 large patches of a resized copy. In each stage
both run blocks of their own; then the class token of each, mapped to the other's width, attends to
the other's patches and comes back (Section 3.3, cross-attention). The logits are the mean of both.
The dagger models make patches by three convolutions.

A reduction is refused: methods here follow one set of tokens through a network, and this one has
two, which read each other between stages.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from evovit_jax.errors import UserError
from evovit_jax.hardware.gelu import gelu
from evovit_jax.models.class_attention import ClassAttention
from evovit_jax.models.crossvit_embedding import BRANCHES, CrossViTConfig, Embedding
from evovit_jax.models.grid_block import through_blocks
from evovit_jax.models.layers import LayerNorm, as_float32, truncated_normal
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.models.unreduced import Unreduced
from evovit_jax.models.vit import Block, ViTConfig
from evovit_jax.reduction.stochastic_depth import drop_path
from evovit_jax.reduction.tokens import start_tokens

NOT_REDUCED = (
    "a CrossViT cannot be reduced: its two branches read each other's tokens between stages, and "
    "the methods here follow one set of tokens"
)


class Projection(nnx.Module):
    """Norm, GELU, and a linear map of a class token to the other branch's width."""

    def __init__(self, config: ViTConfig, out: int, *, rngs: nnx.Rngs):
        dim, dtype = config.embed_dim, jnp.dtype(config.dtype)
        self.norm = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        self.linear = nnx.Linear(dim, out, kernel_init=truncated_normal, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b 1 d"]) -> Float[Array, "b 1 e"]:
        """The class token in the other width."""
        return self.linear(gelu(self.norm(x)))


class Fusion(nnx.Module):
    """A class token plus what it gathers of itself and the patches after it."""

    def __init__(self, config: ViTConfig, drop_path_rate: float, *, rngs: nnx.Rngs):
        dim, dtype = config.embed_dim, jnp.dtype(config.dtype)
        self.drop_path_rate = drop_path_rate
        self.norm1 = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        self.attn = ClassAttention(
            dim, config.num_heads, qkv_bias=config.qkv_bias, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "b n d"], key: Key[Array, ""] | None
    ) -> Float[Array, "b 1 d"]:
        """The class token, the first of `x`, dropping its residual branch by `key`."""
        return x[:, :1] + drop_path(self.attn(self.norm1(x)), self.drop_path_rate, key)


class Stage(nnx.Module):
    """Blocks of each branch, then the exchange of class tokens."""

    def __init__(
        self, config: CrossViTConfig, depth: tuple[int, ...], first: int, *, rngs: nnx.Rngs
    ):
        branches = [config.of_branch(branch) for branch in range(BRANCHES)]
        self.blocks = nnx.List(
            nnx.List(Block(own, first + i, rngs=rngs) for i in range(count))
            for own, count in zip(branches, depth, strict=False)
        )
        rate = max(blocks[-1].drop_path_rate for blocks in self.blocks)
        pairs = list(zip(branches, branches[::-1], strict=True))
        self.projs = nnx.List(Projection(own, to.embed_dim, rngs=rngs) for own, to in pairs)
        self.fusion = nnx.List(
            nnx.List(Fusion(to, rate, rngs=rngs) for _ in range(max(1, depth[BRANCHES])))
            for _, to in pairs
        )
        self.revert_projs = nnx.List(Projection(to, own.embed_dim, rngs=rngs) for own, to in pairs)

    def __call__(
        self,
        branches: Sequence[Float[Array, "b _n _d"]],
        *,
        train: bool,
        key: Key[Array, ""] | None,
    ) -> list[Float[Array, "b _n _d"]]:
        """The tokens of each branch; both exchanges read the tokens from before either."""
        keys = [None] * BRANCHES if key is None or not train else jax.random.split(key, BRANCHES)
        before = [
            through_blocks(
                blocks,
                start_tokens(x, prefix=1, grid=(1, x.shape[1] - 1), train=train, key=own),
            ).x
            for blocks, x, own in zip(self.blocks, branches, keys, strict=True)
        ]
        after = []
        for i, (x, other) in enumerate(zip(before, before[::-1], strict=True)):
            token = self.projs[i](x[:, :1])
            seen = jnp.concatenate([token, other[:, 1:]], axis=1)
            for number, fusion in enumerate(self.fusion[i], 2 * len(self.blocks[i])):
                own = None if keys[i] is None else jax.random.fold_in(keys[i], number)
                seen = fusion(seen, own)
            token = self.revert_projs[i](seen[:, :1])
            after.append(jnp.concatenate([token, x[:, 1:]], axis=1))
        return after


class CrossViT(Unreduced):
    """A CrossViT; its only reduction is "none".

    `model(images)` returns float32 logits `[batch, num_classes]` and `Outputs`. Its features are
    the tokens of branch 1 (large patches), class token first; `aux` has those of both, "branch0"
    and "branch1", all after the last norms.
    """

    Config = CrossViTConfig
    smoke: ClassVar = {
        "image_size": 48,
        "image_scale": (1.0, 2 / 3),
        "embed_dim": (12, 24),
        "depth": ((1, 2, 0),),
        "num_heads": (2, 2),
    }

    def __init__(self, config: CrossViTConfig, reduction=None, *, rngs: nnx.Rngs):
        if reduction not in (None, "", "none", {"name": "none"}):
            raise UserError(f"{NOT_REDUCED} (reduction={reduction!r})")
        self.config = config
        branches = [config.of_branch(branch) for branch in range(BRANCHES)]
        dtype = jnp.dtype(config.dtype)
        self.embeddings = nnx.List(Embedding(config, i, rngs=rngs) for i in range(BRANCHES))
        longest = [max(depth[:BRANCHES]) for depth in config.depth]
        self.blocks = nnx.List(
            Stage(config, depth, sum(longest[:i]), rngs=rngs)
            for i, depth in enumerate(config.depth)
        )
        self.norm = nnx.List(
            LayerNorm(own.embed_dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
            for own in branches
        )
        self.head = nnx.List(
            nnx.Linear(own.embed_dim, config.num_classes, kernel_init=truncated_normal, rngs=rngs)
            for own in branches
        )

    def refusal(self, fields: list[str]) -> str:
        """The line that says why `fields` of a reduction cannot be set."""
        return f"{NOT_REDUCED} (got {', '.join(fields)})"

    def forward(
        self, images: Float[Array, "b h w c"], *, train: bool, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits and features of one pass."""
        branches = [embedding(images) for embedding in self.embeddings]
        for number, stage in enumerate(self.blocks):
            own = None if key is None else jax.random.fold_in(key, number)
            branches = stage(branches, train=train, key=own)
        branches = [norm(x) for norm, x in zip(self.norm, branches, strict=True)]
        logits = [head(as_float32(x[:, 0])) for head, x in zip(self.head, branches, strict=True)]
        shown = {f"branch{i}": x for i, x in enumerate(branches)}
        return sum(logits) / BRANCHES, Outputs(branches[1], aux=shown)


def _entry(name: str, settings: dict, top1: float | None = None) -> Entry:
    at_408 = name.endswith("408")
    sizes = {"image_size": 408, "image_scale": (1.0, 384 / 408)} if at_408 else {}
    # timm's crop fraction is 0.875 at 240 pixels and 1 at 408.
    transform = EvalTransform(*((408, 408) if at_408 else (240, 274)))
    given = settings | sizes | ({"multi_conv": True} if "dagger" in name else {})
    weights = f"hf://timm/{name}.in1k"
    return Entry(CrossViT, given, transform=transform, top1=top1, weights=weights)


def _size(dims: tuple[int, int], blocks: int, heads: int, mlp_ratio: float) -> dict:
    return {
        "embed_dim": dims,
        "depth": ((1, blocks, 0),) * 3,
        "num_heads": (heads, heads),
        "mlp_ratio": (mlp_ratio, mlp_ratio, 1.0),
    }


_NINE, _FIFTEEN = _size((128, 256), 3, 4, 3.0), _size((192, 384), 5, 6, 3.0)
_EIGHTEEN = _size((224, 448), 6, 7, 3.0)

MODELS = {
    "crossvit_tiny_240": _entry("crossvit_tiny_240", _size((96, 192), 4, 3, 4.0), 73.4),
    "crossvit_small_240": _entry("crossvit_small_240", _size((192, 384), 4, 6, 4.0), 81.0),
    "crossvit_base_240": _entry("crossvit_base_240", _size((384, 768), 4, 12, 4.0), 82.2),
    "crossvit_9_240": _entry("crossvit_9_240", _NINE, 73.9),
    "crossvit_15_240": _entry("crossvit_15_240", _FIFTEEN, 81.5),
    "crossvit_18_240": _entry("crossvit_18_240", _EIGHTEEN, 82.5),
    "crossvit_9_dagger_240": _entry("crossvit_9_dagger_240", _NINE, 77.1),
    "crossvit_15_dagger_240": _entry("crossvit_15_dagger_240", _FIFTEEN, 82.3),
    "crossvit_15_dagger_408": _entry("crossvit_15_dagger_408", _FIFTEEN),
    "crossvit_18_dagger_240": _entry("crossvit_18_dagger_240", _EIGHTEEN, 82.8),
    "crossvit_18_dagger_408": _entry("crossvit_18_dagger_408", _EIGHTEEN),
}
