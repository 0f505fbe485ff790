"""TokenLearner: a few tokens, each a weighted sum of all patches, from a block on.

Ryoo et al., "TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?", NeurIPS 2021
(arXiv:2106.11297), Section 2. Before the block at `locations` each of `num_tokens` tokens is the
sum over places of the patches times a map of weights, made of the normalised patches:

- version 1.1 (the authors' later one): an MLP of `bottleneck_dim` hidden channels, softmax over
  places;
- version 1.0 (the paper's): four 3x3 convolutions without bias, GELU between them, a sigmoid. With
  `sum_pooling` false the sum is a mean.

With `fuse` (TokenFuser, Section 2.2) every block from the location on learns tokens anew, and
after it they are mixed with one another, spread over the places by a sigmoid of an MLP of the
patches from before, and added to these: the network goes on with all of its patches.

GELU is its tanh form, LayerNorm's epsilon 1e-6, all in float32. Class tokens go round it. In the
source map a patch is in the token that gives it the largest weight.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.base import Backbone, Reducer, check_blocks, check_choice
from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.tokens import TokenSet, regroup

VERSIONS = ("1.0", "1.1")
CONVOLUTIONS = 4  # of version 1.0


@dataclasses.dataclass(frozen=True)
class TokenLearnerFields(base.Fields):
    """Settings of TokenLearner.

    Attributes:
      num_tokens: how many tokens are learned.
      locations: the one block before which tokens are learned; by default the middle one.
      version: "1.1" or "1.0".
      fuse: whether all patches come back after each block from the location on.
      bottleneck_dim: hidden width of the MLPs.
      sum_pooling: of version 1.0, whether a token is a sum; else a mean.
    """

    num_tokens: int = 8
    locations: int | tuple[int, ...] | None = None
    version: str | float = "1.1"
    fuse: bool = False
    bottleneck_dim: int = 64
    sum_pooling: bool = True

    def __post_init__(self):
        check_choice("tokenlearner version", str(self.version), VERSIONS)
        if self.num_tokens < 1 or self.bottleneck_dim < 1:
            raise UserError("tokenlearner num_tokens and bottleneck_dim must be 1 or more")

    def check(self, backbone: Backbone) -> None:
        """Refuses a location outside of the network, and more tokens than there are patches."""
        self.location(backbone)
        patches = backbone.grid[0] * backbone.grid[1]
        if self.num_tokens > patches:
            raise UserError(
                f"tokenlearner num_tokens {self.num_tokens} is more than the {patches} patches"
            )

    def location(self, backbone: Backbone) -> int:
        """The block before which tokens are learned.

        Raises:
          UserError: there are several, or the network has no such block.
        """
        given = backbone.depth // 2 if self.locations is None else self.locations
        blocks = given if isinstance(given, tuple) else (given,)
        check_blocks("locations", blocks, backbone.depth)
        if len(blocks) > 1:
            raise UserError(f"tokenlearner has one location, got {':'.join(map(str, blocks))}")
        return blocks[0]


class Masking(nnx.Module):
    """Two linear layers with GELU's tanh form between them."""

    def __init__(self, dim: int, hidden: int, out: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.fc1 = nnx.Linear(dim, hidden, kernel_init=init, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, out, kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "b p d"]) -> Float[Array, "b p s"]:
        """A number for each of the tokens at each place."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=True))


class Learner(nnx.Module):
    """Weights of each place in each token, by an MLP (1.1) or convolutions (1.0)."""

    def __init__(self, dim: int, fields: TokenLearnerFields, *, rngs: nnx.Rngs):
        count = fields.num_tokens
        self.norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        if str(fields.version) == "1.1":
            self.token_masking = Masking(dim, fields.bottleneck_dim, count, rngs=rngs)
        else:
            self.convs = nnx.List(
                nnx.Conv(count if i else dim, count, (3, 3), use_bias=False, rngs=rngs)
                for i in range(CONVOLUTIONS)
            )

    def __call__(
        self, x: Float[Array, "b p d"], grid: tuple[int, int], *, mean: bool
    ) -> tuple[Float[Array, "b s d"], Float[Array, "b s p"]]:
        """The tokens and each place's weight in them, of float32 patches in raster order."""
        normed = self.norm(x)
        if hasattr(self, "token_masking"):
            weights = jax.nn.softmax(self.token_masking(normed), axis=1)
        else:
            maps = normed.reshape(x.shape[0], *grid, -1)
            for i, conv in enumerate(self.convs):
                maps = conv(jax.nn.gelu(maps, approximate=True) if i else maps)
            weights = jax.nn.sigmoid(maps).reshape(*x.shape[:2], -1)
            weights = weights / x.shape[1] if mean else weights
        learned = jnp.einsum("bps,bpd->bsd", weights, x, precision="highest")
        return learned, jnp.swapaxes(weights, 1, 2)


class Fuser(nnx.Module):
    """Spreads learned tokens over all places again."""

    def __init__(self, dim: int, fields: TokenLearnerFields, *, rngs: nnx.Rngs):
        count, made = fields.num_tokens, {"epsilon": 1e-6, "rngs": rngs}
        self.norm1, self.norm2 = nnx.LayerNorm(dim, **made), nnx.LayerNorm(dim, **made)
        self.norm = nnx.LayerNorm(dim, **made)
        self.mix = nnx.Linear(count, count, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.token_masking = Masking(dim, fields.bottleneck_dim, count, rngs=rngs)

    def __call__(
        self, learned: Float[Array, "b s d"], patches: Float[Array, "b p d"]
    ) -> Float[Array, "b p d"]:
        """What is added to `patches`, from before the tokens were learned."""
        mixed = jnp.swapaxes(self.mix(jnp.swapaxes(self.norm1(learned), 1, 2)), 1, 2)
        weights = jax.nn.sigmoid(self.token_masking(self.norm(patches)))
        return jnp.einsum("bps,bsd->bpd", weights, self.norm2(mixed), precision="highest")


class TokenLearner(Reducer):
    """A few tokens, learned from all patches."""

    card = Card(
        title="TokenLearner",
        paper="2106.11297",
        summary="a few tokens summed by learned maps; with `fuse=true` all patches come back",
        training=NEEDED,
        score="learned",
        equal_to=("google-research/scenic",),
        notes="Apache-2.0",
    )
    Fields = TokenLearnerFields
    keeps_places = False
    trained_settings = ("num_tokens", "locations", "version", "fuse", "bottleneck_dim")
    fixed_fields = trained_settings

    def __init__(self, backbone: Backbone, fields: TokenLearnerFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        count = backbone.depth - fields.location(backbone) if fields.fuse else 1
        dim = backbone.dim[0]
        self.learners = nnx.List(Learner(dim, fields, rngs=rngs) for _ in range(count))
        if fields.fuse:
            self.fusers = nnx.List(Fuser(dim, fields, rngs=rngs) for _ in range(count))

    def module(self, block: int) -> int | None:
        """The number of the module before `block`, None where there is none."""
        number = block - self.fields.location(self.backbone)
        return number if 0 <= number < len(self.learners) else None

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Learns tokens of all patches."""
        number = self.module(block)
        if number is None:
            return tokens
        patches = tokens.x[:, tokens.prefix :].astype(jnp.float32)
        mean = not self.fields.sum_pooling
        learned, weights = self.learners[number](patches, tokens.grid, mean=mean)
        after = regroup(tokens, learned, weights.argmax(axis=1))
        return after.put_aside(whole=(tokens.x, tokens.source)) if self.fields.fuse else after

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """All patches again, with `fuse`."""
        number = self.module(block)
        if number is None or not self.fields.fuse:
            return tokens
        (whole, source), prefix = tokens.aside["whole"], tokens.prefix
        learned, patches = (x[:, prefix:].astype(jnp.float32) for x in (tokens.x, whole))
        patches = (patches + self.fusers[number](learned, patches)).astype(whole.dtype)
        x = jnp.concatenate([tokens.x[:, :prefix], patches], axis=1)
        return tokens.replace(x=x, source=source).put_aside(whole=None)
