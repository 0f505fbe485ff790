"""Flat vision transformers under timm's names, which DeiT, EViT and DynamicViT share.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evovit_jax.models.positions import resize_positions
from evovit_jax.models.variables import variables
from evovit_jax.weights.layouts import (
    Layout,
    Link,
    Renames,
    Scheme,
    as_convolution,
    default_link,
    substitute,
    torch_name,
)
from evovit_jax.weights.names import reducers

# What only pooled models have.
CLASS_TOKEN_HEADS = r"(norm|head)_cls/.*"
# Weights without them have a head that learned from the class token. Given the mean of the patches
# it is wrong on every image, and nothing else about the tensors shows it.
HINTS = {
    CLASS_TOKEN_HEADS: "if these are a class token's weights, such as DeiT's, they belong in "
    "--model=deit_* --reduction=evo"
}


def scheme(model: nnx.Module, renames: Iterable[tuple[str, str]] = ()) -> Scheme:
    """timm's names, up to `renames`."""
    resize = {"pos_embed": position_resizer(model)}
    return Scheme(links=links(model, renames), resize=resize, hints=HINTS)


def links(
    model: nnx.Module,
    renames: Renames = (),
    layouts: Mapping[str, Layout] = MappingProxyType({}),
) -> tuple[Link, ...]:
    """A link for each variable of a flat vision transformer.

    Args:
      model: the transformer.
      renames: from timm's names; "{q,k,v}_proj" stands for three tensors, one after another.
      layouts: by path, where it is another than the usual.
    """
    config = model.config
    renames = (*renames, *reducers.renames(model))
    found = []
    for path, variable in variables(model).items():
        name = substitute(torch_name(path), renames)
        link = default_link(path, variable.shape, name)
        if path == "patch_embed/proj/kernel" and len(variable.shape) == 2:
            layout = as_convolution(config.patch_size, config.in_channels)
            link = dataclasses.replace(link, layout=layout)
        layout = layouts.get(path, link.layout)
        found.append(dataclasses.replace(link, names=spelled_out(name), layout=layout))
    return tuple(found)


def spelled_out(name: str) -> tuple[str, ...]:
    """("q.weight", "k.weight") for "{q,k}.weight"."""
    before, _, rest = name.partition("{")
    within, braces, after = rest.partition("}")
    return tuple(before + part + after for part in within.split(",")) if braces else (name,)


def rows_resizer(model: nnx.Module):
    """As `position_resizer`, of `[n, d]` positions."""
    resize = position_resizer(model)
    return lambda value, shape: resize(value[None], (1, *shape))[0]


def position_resizer(model: nnx.Module):
    """Interpolates `[1, n, d]` positions that were learned for another square grid."""
    return grid_resizer(model.prefix if model.config.class_position else 0, model.resized)


def grid_resizer(prefix: int, resized: Callable[..., jax.Array] = resize_positions):
    """Interpolates `[1, prefix + n, d]` positions that were learned for another square grid."""

    def resize(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if value.ndim != 3 or value.shape[2] != shape[2]:
            return value
        old, new = (math.isqrt(max(0, n - prefix)) for n in (value.shape[1], shape[1]))
        if old == 0 or old * old != value.shape[1] - prefix or new * new != shape[1] - prefix:
            return value
        grid = resized(jnp.asarray(value[:, prefix:]), (old, old), (new, new))
        return np.concatenate([value[:, :prefix], np.asarray(grid)], axis=1)

    return resize
