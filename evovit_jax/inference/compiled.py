"""A model as a compiled function of images, large batches in chunks that fit the caches."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from evovit_jax.data import on_device
from evovit_jax.hardware import platforms
from evovit_jax.models.batch_norm import fold_in_place
from evovit_jax.models.narrowing import narrow
from evovit_jax.models.token_model import TokenModel
from evovit_jax.models.variables import Skeleton, Variables

# Pixels at once on a CPU, whose caches hold the activations of so many: 8 images of 224 px, 2 of
# 384 px (docs/performance.md).
CPU_PIXELS = 8 * 224**2


# Images of 224 px at once on a TPU, whose fast memory (128 MiB from v4 on) holds a block's map and
# activations of so many; the maps grow with the square of the pixels.
TPU_IMAGES = 64


def default_chunk(image_size: int, platform: str | None = None) -> int | None:
    """Images of `image_size` px at once on `platform`; None for all.

    By default that is the platform which is compiled for: to be called while a program is traced.
    """
    platform = platform or platforms.platform()
    if platform == "tpu":
        return max(1, int(TPU_IMAGES * min(1.0, 224 / image_size) ** 4))
    return max(1, CPU_PIXELS // image_size**2) if platform == "cpu" else None


def chunked(function: Callable[[Array], Any], chunk: int | None) -> Callable[[Array], Any]:
    """`function` of a batch, computed `chunk` images at a time.

    Every array that it returns has the batch as its first dimension. What is left over when the
    batch does not divide is a chunk of its own. A batch that is sharded over several devices is
    left whole.
    """

    @functools.wraps(function)
    def run(images: Array) -> Any:
        if not chunk or len(images) <= chunk or jax.sharding.get_abstract_mesh().size > 1:
            return function(images)
        n = len(images)
        whole = n - n % chunk
        parts = images[:whole].reshape(-1, chunk, *images.shape[1:])
        results = jax.lax.map(function, parts)
        results = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), results)
        if whole == n:
            return results
        rest = function(images[whole:])
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), results, rest)

    return run


def program(
    model: nnx.Module, *, chunk: int | None = None, reduction: dict | None = None
) -> tuple[Callable[[Any, Array], Array], Any]:
    """`logits(state, images)` to be jitted, and the state, batch norms folded into their layers."""
    graphdef, fold = folded(model)
    look = forward(graphdef, chunk=chunk, reduction=reduction)
    return lambda state, images: look(state, images)[0], fold(*Skeleton.variables(model))


def folded(model: nnx.Module) -> tuple[nnx.GraphDef, Callable[[Variables, Variables], Any]]:
    """A network for inference: its batch norms are folded into the layers beside them.

    Parameters of layers that compute in bfloat16 are rounded once, to what every call would make of
    them.

    Args:
      model: its values are not read.

    Returns:
      The network's graph, and a function from parameters and statistics to its state.
    """
    skeleton, changed = Skeleton(model), False

    def ready(model: nnx.Module) -> nnx.Module:
        nonlocal changed
        model = nnx.clone(model)
        norms, narrower = fold_in_place(model), narrow(model)
        changed = norms or narrower
        return model

    def fold(params: Variables, stats: Variables) -> Any:
        return nnx.split(ready(skeleton.build(params, stats)))[1]

    graphdef = nnx.split(nnx.eval_shape(ready, model))[0]
    # Compiled, so that all who fold get the same bits; where nothing changes, it would copy all.
    return graphdef, jax.jit(fold) if changed else fold


def forward(
    graphdef: nnx.GraphDef, *, chunk: int | None = None, reduction: dict | None = None
) -> Callable[[Any, Array], tuple[Array, tuple[Array, ...]]]:
    """`forward(state, images) -> (logits, token maps)`, to be jitted, which prunes unread maps."""

    def run(state: Any, images: Array) -> tuple[Array, tuple[Array, ...]]:
        def part(images: Array) -> tuple[Array, tuple[Array, ...]]:
            model = nnx.merge(graphdef, state)
            less = {"logits_only": True} if isinstance(model, TokenModel) else {}
            logits, out = model(images, reduction=reduction, **less)
            return logits, out.token_maps

        return chunked(part, chunk)(images)

    return run


def of_pixels(
    model: nnx.Module, mean: Sequence[float], std: Sequence[float]
) -> tuple[
    Callable[[Any, Shaped[Array, "b h w c"]], tuple[Array, tuple[Array, ...]]],
    Callable[[Variables, Variables], Any],
]:
    """As `forward`, of uint8 pixels, and `fold` of `folded`: the way to logits of every command.

    Images that are float32 are taken to be normalised.
    """
    graphdef, fold = folded(model)

    def look(state: Any, images: Array) -> tuple[Array, tuple[Array, ...]]:
        run = forward(graphdef, chunk=default_chunk(model.config.image_size))
        if images.dtype == jnp.uint8:
            images = on_device.normalize(images, mean, std)
        return run(state, images)

    return look, fold


def jit_inference(
    model: nnx.Module, *, chunk: int | None = None, reduction: dict | None = None
) -> Callable[[Float[Array, "b h w c"]], Float[Array, "b k"]]:
    """`model` as a compiled function from normalised images to float32 logits.

    The parameters are those that the model has now. Each shape of images is compiled once.

    Args:
      model: of this library.
      chunk: images at once; 0 for the whole batch, None for `default_chunk`.
      reduction: settings of the reducer, by field.
    """
    graphdef, fold = folded(model)
    side = model.config.image_size

    @jax.jit
    def logits(state: Any, images: Array) -> Array:
        size = default_chunk(side) if chunk is None else chunk
        return forward(graphdef, chunk=size, reduction=reduction)(state, images)[0]

    return functools.partial(logits, fold(*Skeleton.variables(model)))
