"""What the methods share that replace the patch tokens by learned mixtures of them."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.reduction.at_locations import Located, LocatedFields
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.tokens import TokenSet, regroup


class Mixing(Located):
    """A method that replaces the patch tokens by learned mixtures of them, before a block.

    Subclasses name the module of a location, `layer(dim, count, rngs=)`, which turns float32
    patch tokens `[b, p, d]` into mixtures `[b, m, d]` and weights `[b, m, p]`. The numbers of
    mixtures follow from the grid that the network is made for.
    """

    knob = None
    layer: type[nnx.Module]
    keeps_places = False
    fixed_fields = ("keep_rate", "locations")

    def __init__(self, backbone: Backbone, fields: LocatedFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        self.cluster_layers = nnx.List(
            self.layer(backbone.dim[0], self.grid_count(location, backbone.grid), rngs=rngs)
            for location in range(len(self.locations))
        )

    def mix(
        self, layer: nnx.Module, x: Float[Array, "b p d"]
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b m p"]]:
        """Mixtures and weights from `layer`."""
        return layer(x)

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """The patch tokens become mixtures; the source map follows the largest weight."""
        location = self.location(block)
        if location is None:
            return tokens
        patches = tokens.x[:, tokens.prefix :].astype(jnp.float32)
        mixed, weights = self.mix(self.cluster_layers[location], patches)
        return regroup(tokens, mixed, weights.argmax(axis=1))
