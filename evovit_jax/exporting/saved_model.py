"""A network as a saved model of TensorFlow: the StableHLO of `stablehlo` inside an operation of it.

Tested in tests/exporting/saved_model_test.py.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from evovit_jax.exporting.formats import Images, Logits
from evovit_jax.exporting.stablehlo import PLATFORMS
from evovit_jax.hardware.platforms import OTHER, compiling_for


def write(logits: Logits, images: Images, path: pathlib.Path) -> dict[str, Any]:
    """Writes a folder with the signature `serving_default`; returns the platforms it is for."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    def traced(taken: jax.Array) -> jax.Array:
        # TensorFlow's XLA knows no `top_k` of JAX's.
        with compiling_for(OTHER):
            return logits(taken)

    converted = jax2tf.convert(
        traced,
        polymorphic_shapes=["(batch, ...)"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    taken = tf.TensorSpec((None, *images.shape), images.dtype, name="images")
    module = tf.Module()
    module.network = tf.function(
        lambda images: {"logits": converted(images)}, input_signature=[taken], autograph=False
    )
    tf.saved_model.save(module, str(path), signatures=module.network)
    return {"platforms": list(PLATFORMS)}


def read(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """What is in a folder, run by TensorFlow."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    network = loaded.signatures["serving_default"]
    return lambda images: np.asarray(network(images=tf.constant(np.asarray(images)))["logits"])
