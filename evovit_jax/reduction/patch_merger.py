"""PatchMerger: a fixed number of learned queries, each a mixture of all tokens.

Renggli et al., "Learning to Merge Tokens in Vision Transformers", 2022 (arXiv:2202.12015),
Section 3: before a location `y = softmax(Q LN(x)^T) LN(x)` with M learned queries Q, not scaled;
the softmax is over tokens. Class tokens go round it. M is `int(patches * keep_rate**k)` of the
grid that the network is made for, and stays so on other grids: the queries are parameters. The
merger's own LayerNorm has epsilon 1e-5.

In the source map a token is in the mixture that gives it the largest weight.

Tested in tests/reduction/mixtures_test.py.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.mixtures import Mixing


class Merger(nnx.Module):
    """`count` mixtures of the tokens, in float32."""

    def __init__(self, dim: int, count: int, *, rngs: nnx.Rngs):
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (count, dim)))
        self.norm = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b p d"]
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b m p"]]:
        """The mixtures and each token's weight in them."""
        x = self.norm(x)
        logits = jnp.einsum("md,bpd->bmp", self.queries[...], x, precision="highest")
        weights = jax.nn.softmax(logits, axis=-1)
        return jnp.einsum("bmp,bpd->bmd", weights, x, precision="highest"), weights


class PatchMerger(Mixing):
    """Learned queries over the tokens."""

    card = Card(
        title="PatchMerger",
        paper="2202.12015",
        summary="learned queries over the tokens",
        training=NEEDED,
        score="learned",
        equal_to=("JoakimHaurum/TokenReduction",),
        notes="MIT",
    )
    layer = Merger
