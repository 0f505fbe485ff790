"""SiT: tokens slimmed into a few mixtures whose weights each token proposes itself.

Zong et al., "Self-Slimmed Vision Transformer", ECCV 2022 (arXiv:2111.12624), the token slimming
module (Section 3.2, equations 2 to 4): before a location `y = softmax(s * MLP(LN(x)))^T x`, the MLP
from C to C / 2 (GELU) to M weights, s a learned scale, the softmax over tokens. Class tokens go
round it. M is `int(patches * keep_rate**k)` of the grid that the network is made for. LayerNorm's
epsilon is 1e-5. As in the token-reduction study (Haurum et al., 2023), without SiT's feature
recalibration distillation.

In the source map a token is in the mixture that gives it the largest weight.

Tested in tests/reduction/mixtures_test.py.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.mixtures import Mixing


class Slimmer(nnx.Module):
    """`count` mixtures of the tokens, in float32."""

    def __init__(self, dim: int, count: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(stddev=0.02)
        self.norm = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.fc1 = nnx.Linear(dim, dim // 2, kernel_init=init, rngs=rngs)
        self.fc2 = nnx.Linear(dim // 2, count, kernel_init=init, rngs=rngs)
        self.scale = nnx.Param(jnp.ones((1, 1, 1)))

    def __call__(
        self, x: Float[Array, "b p d"]
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b m p"]]:
        """The mixtures and each token's weight in them."""
        logits = self.fc2(jax.nn.gelu(self.fc1(self.norm(x)), approximate=False))
        weights = jax.nn.softmax(logits * self.scale[...], axis=1)
        mixed = jnp.einsum("bpm,bpd->bmd", weights, x, precision="highest")
        return mixed, jnp.swapaxes(weights, 1, 2)


class SiT(Mixing):
    """Self-slimming."""

    card = Card(
        title="SiT",
        paper="2111.12624",
        summary="mixtures whose weights each token proposes",
        training=NEEDED,
        score="learned",
        equal_to=("JoakimHaurum/TokenReduction",),
        notes="MIT",
    )
    layer = Slimmer
    torch_names = (
        (r"(cluster_layers\.\d+)\.weight", r"\1.scale"),
        (r"(cluster_layers\.\d+)\.norm\.(.*)", r"\1.weight.0.\2"),
        (r"(cluster_layers\.\d+)\.fc1\.(.*)", r"\1.weight.1.\2"),
        (r"(cluster_layers\.\d+)\.fc2\.(.*)", r"\1.weight.3.\2"),
    )
