"""What is compiled for an accelerator that is not here: inference, a gradient, a training step.

Tested by `tests/benchmarking/compiler_rows_test.py`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from evovit_jax.inference import compiled
from evovit_jax.models.variables import Skeleton
from evovit_jax.parallel import sharding
from evovit_jax.train import gradient_sums
from evovit_jax.train.program import build


@dataclasses.dataclass(frozen=True)
class Work:
    """What is compiled.

    Attributes:
      function: of `arguments`, for its multiply-adds.
      arguments: shapes, with where they lie.
      lower: the method of that name of the jitted function.
      mesh: what is set meanwhile.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    lower: Callable[..., Any]
    mesh: jax.sharding.Mesh | None = None


def inference(model: nnx.Module, place: jax.Device, batch_size: int, chunk: int | None) -> Work:
    """The logits of images, as the commands compute them."""
    if chunk is None:
        chunk = compiled.default_chunk(model.config.image_size, place.platform)
    graphdef, fold = compiled.folded(model)
    look = compiled.forward(graphdef, chunk=chunk)
    state = jax.eval_shape(fold, *Skeleton.variables(model))
    arguments = (state, images_of(model, batch_size, model.config.dtype))

    def function(state: Any, images: jax.Array) -> jax.Array:
        return look(state, images)[0]

    return Work(function, _placed(arguments, place), jax.jit(function).lower)


def gradient(model: nnx.Module, place: jax.Device, batch_size: int) -> Work:
    """The cross-entropy's gradient by all parameters, without optimiser or augmentation.

    What other libraries' value and gradient is compared with. Sums are float32, as the trainer's.
    """
    skeleton = Skeleton(model)

    def loss(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> tuple:
        built = skeleton.build(params, stats)
        logits, _ = built(images, train=True, key=jax.random.key(0))
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return value, (value, Skeleton.variables(built)[1])

    function = gradient_sums.in_float32(jax.grad(loss, has_aux=True))
    images = images_of(model, batch_size, model.config.dtype)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    arguments = (*Skeleton.variables(model), images, labels)
    return Work(function, _placed(arguments, place), jax.jit(function).lower)


def training(config: ConfigDict, place: jax.Device, images: jax.ShapeDtypeStruct) -> Work:
    """The trainer's step on `images`, with its optimiser, in the last phase of its schedule."""
    count = len(images)
    run = build(config, [place], examples=count)
    step = run.step_at(run.total)
    on = sharding.batch_sharding(run.mesh)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((count,), jnp.int32)}
    batch = {name: x.update(sharding=on) for name, x in batch.items()}
    function = functools.partial(run.step, overrides=step.overrides)
    return Work(function, (run.like, batch), step.lower, run.mesh)


def images_of(model: nnx.Module, batch_size: int, dtype: str) -> jax.ShapeDtypeStruct:
    """Images as large as the model's, without their values."""
    side, channels = model.config.image_size, model.config.in_channels
    return jax.ShapeDtypeStruct((batch_size, side, side, channels), jnp.dtype(dtype))


def _placed(arguments: Any, place: jax.Device) -> Any:
    on = SingleDeviceSharding(place)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), arguments)
