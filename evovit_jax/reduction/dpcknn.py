"""DPC-KNN: clusters around density peaks, each the weighted mean of its tokens.

Zeng et al., "Not All Tokens Are Equal: Human-centric Visual Analysis via Token Clustering
Transformer", CVPR 2022 (arXiv:2204.08680), Section 3.2, after Du et al. (2016); as in the
token-reduction study (Haurum et al., 2023). Before a location, with d the Euclidean distance of
patch tokens divided by sqrt(C):

- density `exp(-mean of d^2 to the k nearest tokens)`, a token among its own neighbours (k = 5);
- delta, the distance to the nearest denser token, for the densest the image's largest distance;
- the `int(patches * keep_rate**k)` tokens of the largest density * delta are centres, every other
  token goes to the nearest centre;
- a cluster is the mean of its tokens, weighted by `exp(w . x + b)`, learned, or equally
  (`equal_weight`); the sum of weights + 1e-6.

The study's code adds noise up to 1e-6 to the densities against ties; here ties are decided by the
tokens' order. Class tokens go round it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.reduction.at_locations import Located, LocatedFields
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.card import OPTIONAL, Card
from evovit_jax.reduction.tokens import (
    TokenSet,
    columns,
    group_sum,
    nearest_distances,
    pairwise_distances,
    regroup,
    scatter_set,
    top_k,
)


@dataclasses.dataclass(frozen=True)
class DPCKNNFields(LocatedFields):
    """Settings of DPC-KNN beside those of `LocatedFields`.

    Attributes:
      k_neighbors: over how many nearest tokens, itself included, a density is the mean.
      equal_weight: whether all tokens of a cluster count alike, instead of by learned weights.
    """

    k_neighbors: int = 5
    equal_weight: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.k_neighbors < 1:
            raise UserError(f"dpcknn k_neighbors must be 1 or more, got {self.k_neighbors}")


class Score(nnx.Module):
    """The learned log-weight of a token."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(stddev=0.02)
        self.score = nnx.Linear(dim, 1, kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "b p d"]) -> Float[Array, "b p"]:
        """Log-weights."""
        return self.score(x)[..., 0]


class DPCKNN(Located):
    """Density-peak clustering."""

    card = Card(
        title="DPC-KNN",
        paper="2204.08680",
        summary="clusters around density peaks, weighted by learned scores or equally",
        training=OPTIONAL,
        score="density and distance of tokens",
        equal_to=("JoakimHaurum/TokenReduction",),
        notes="MIT",
        untrained="equal_weight=true",
    )
    Fields = DPCKNNFields
    keeps_places = False
    fixed_fields = ("locations", "equal_weight")

    def __init__(self, backbone: Backbone, fields: DPCKNNFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        if not fields.equal_weight:
            self.cluster_layers = nnx.List(
                Score(backbone.dim[0], rngs=rngs) for _ in self.locations
            )

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """The patch tokens become the means of their clusters."""
        if not self.reduces(block, tokens):
            return tokens
        location = self.location(block)
        x = tokens.x[:, tokens.prefix :].astype(jnp.float32)
        count = self.count(location, tokens)
        group = clusters(x, count, self.fields.k_neighbors)
        log_weights = (
            jnp.zeros(x.shape[:2]) if self.fields.equal_weight else self.cluster_layers[location](x)
        )
        return regroup(tokens, weighted_means(x, log_weights, group, count), group)


def clusters(x: Float[Array, "b p d"], count: int, neighbors: int) -> Int[Array, "b p"]:
    """The cluster, of `count`, that each token belongs to."""
    distance = jax.lax.stop_gradient(pairwise_distances(x)) / jnp.sqrt(jnp.float32(x.shape[-1]))
    nearest = nearest_distances(distance, min(neighbors, x.shape[1]))
    density = jnp.exp(-jnp.square(nearest).mean(axis=-1))
    denser = density[:, None, :] > density[:, :, None]
    largest = distance.max(axis=(1, 2))[:, None, None]
    delta = jnp.where(denser, distance, largest).min(axis=-1)
    _, centres = top_k(density * delta, count)
    group = columns(distance, centres).argmin(axis=-1).astype(jnp.int32)
    own = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None], centres.shape)
    return scatter_set(group, centres, own)


def weighted_means(
    x: Float[Array, "b p d"],
    log_weights: Float[Array, "b p"],
    group: Int[Array, "b p"],
    count: int,
) -> Float[Array, "b {count} d"]:
    """The mean of the tokens of each cluster, weighted by `exp(log_weights)`."""
    weights = jnp.exp(log_weights)[..., None]
    sums = group_sum(jnp.concatenate([x * weights, weights], axis=-1), group, count)
    return sums[..., :-1] / (sums[..., -1:] + 1e-6)
