"""The ViT that TokenLearner was published with (Ryoo et al., 2021): no class token.

All patches have positions, GELU is its tanh form, and the mean of the tokens after the last norm
is classified.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.models.layers import (
    LayerNorm,
    Mlp,
    PatchEmbed,
    as_float32,
    mean_of_patches,
    truncated_normal,
)
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.registry import Entry
from evovit_jax.models.token_model import TokenModel
from evovit_jax.models.vit import Block, VisionTransformer, ViTConfig
from evovit_jax.reduction import Backbone, create_reducer
from evovit_jax.reduction.tokens import TokenSet


@dataclasses.dataclass(frozen=True)
class TokenLearnerViTConfig(ViTConfig):
    """Settings of the network; the fields are those of a ViT."""

    class_position: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name, value in (("distilled", False), ("pool", "token"), ("class_position", False)):
            if getattr(self, name) != value:
                raise UserError(f"{name} cannot be set: this network has no class token")


class TanhMlp(Mlp):
    """Two linear layers with GELU's tanh form between them."""

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The MLP of each token on its own."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=True))


class TokenLearnerViT(TokenModel):
    """A ViT without class token, with a reducer."""

    Config = TokenLearnerViTConfig
    prefix = 0
    smoke = VisionTransformer.smoke

    def __init__(self, config: TokenLearnerViTConfig, reduction=None, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.embed_dim, jnp.dtype(config.dtype)
        side = config.image_size // config.patch_size
        self.grid = (side, side)
        self.patch_embed = PatchEmbed(
            config.patch_size, config.in_channels, dim, dtype=dtype, rngs=rngs
        )
        self.pos_embed = nnx.Param(truncated_normal(rngs.params(), (1, side * side, dim)))
        self.blocks = nnx.List(Block(config, i, rngs=rngs) for i in range(config.depth))
        for block in self.blocks:
            block.mlp = TanhMlp(dim, int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(dim, config.num_classes, kernel_init=truncated_normal, rngs=rngs)
        backbone = Backbone(
            depth=config.depth,
            dim=(dim,),
            heads=(config.num_heads,),
            grid=self.grid,
            prefix=self.prefix,
            stage_depths=(config.depth,),
            classes=config.num_classes,
        )
        self.reducer = create_reducer(reduction, backbone, rngs=rngs)

    @property
    def stages(self) -> list[list[Block]]:
        """All blocks, as one stage."""
        return [list(self.blocks)]

    def embed(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b p d"]:
        """Patch tokens with their positions, in the compute dtype."""
        return self.placed_patches(images, self.pos_embed[...], train=train)

    def classify(self, tokens: TokenSet) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits of the mean of all tokens, and the tokens, after the last norm."""
        features = self.norm(tokens.x)
        pooled = mean_of_patches(tokens.replace(x=as_float32(features)))
        return self.head(pooled), Outputs(features)


MODELS = {
    "tokenlearner_vit_small_patch16_224": Entry(
        TokenLearnerViT, {"embed_dim": 384, "num_heads": 6}, reduction="tokenlearner"
    ),
    "tokenlearner_vit_base_patch16_224": Entry(
        TokenLearnerViT, {"embed_dim": 768, "num_heads": 12}, reduction="tokenlearner"
    ),
}
