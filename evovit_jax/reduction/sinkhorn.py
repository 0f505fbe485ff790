"""Sinkhorn: soft clusters around learned centres, balanced by optimal transport.

Haurum et al., "Which Tokens to Use? Investigating Token Reduction in Vision Transformers", ICCVW
2023 (arXiv:2308.04657), after Kim et al., "Rethinking the Role of Tokens" (2021): before a location
the L2-normalised tokens `x` are shared out between M learned unit centres `v` by
`exp(x . v / eps)`, normalised in turn over the tokens of a centre and over the centres of a token,
`iterations` times, so that in the end the shares of each token sum to 1. A cluster is the sum of
its shares of the normalised tokens. eps is 1, iterations 3. Class tokens go round it. M is
`int(patches * keep_rate**k)` of the grid that the network is made for.

In the source map a token is in the cluster that takes the largest share of it.

Tested in tests/reduction/mixtures_test.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction.at_locations import LocatedFields
from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.mixtures import Mixing


@dataclasses.dataclass(frozen=True)
class SinkhornFields(LocatedFields):
    """Settings of Sinkhorn beside those of `LocatedFields`.

    Attributes:
      eps: the temperature of the transport, above 0.
      iterations: rounds of normalisation, one or more.
    """

    eps: float = 1.0
    iterations: int = 3

    def __post_init__(self):
        super().__post_init__()
        if self.eps <= 0 or self.iterations < 1:
            raise UserError("sinkhorn: eps must be above 0 and iterations 1 or more")


class Centres(nnx.Module):
    """`count` learned unit vectors and the shares of the tokens that they take, in float32."""

    def __init__(self, dim: int, count: int, *, rngs: nnx.Rngs):
        self.v = nnx.Param(unit(jax.random.normal(rngs.params(), (count, dim))))

    def __call__(
        self, x: Float[Array, "b p d"], eps: float, iterations: int
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b m p"]]:
        """The clusters and their shares of each token."""
        x = unit(x)
        logits = jnp.einsum("md,bpd->bmp", unit(self.v[...]), x, precision="highest") / eps
        for _ in range(iterations):
            logits = jax.nn.log_softmax(logits, axis=2)  # over tokens
            logits = jax.nn.log_softmax(logits, axis=1)  # over centres
        shares = jnp.exp(logits)
        return jnp.einsum("bmp,bpd->bmd", shares, x, precision="highest"), shares


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Vectors of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Sinkhorn(Mixing):
    """Balanced soft clustering."""

    card = Card(
        title="Sinkhorn",
        paper="2308.04657",
        summary="soft clusters around learned centres",
        training=NEEDED,
        score="learned",
        equal_to=("JoakimHaurum/TokenReduction",),
        notes="MIT",
    )
    Fields = SinkhornFields
    layer = Centres

    def mix(self, layer: Centres, x: Float[Array, "b p d"]) -> tuple[Array, Array]:
        """Clusters and shares."""
        return layer(x, self.fields.eps, self.fields.iterations)
