"""The activations of feed-forwards, tested in tests/hardware/gelu_test.py and by golden files.

The backward pass of each keeps its input alone: what else it needs is cheaper computed than stored.
"""

import functools
from collections.abc import Callable, Mapping

import jax
from jaxtyping import Array, Float

from evovit_jax.hardware.gelu import gelu


@jax.checkpoint
def quick_gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`x sigmoid(1.702 x)`, the GELU of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


# By the names that the models' settings have. "gelu_tanh" is GELU by a hyperbolic tangent.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": jax.checkpoint(functools.partial(jax.nn.gelu, approximate=True)),
    "quick_gelu": quick_gelu,
}
