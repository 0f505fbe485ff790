"""Classes that are given by embeddings, such as a text tower's, in place of a learned head.

An encoder's features and the embeddings of the classes lie in one space, and the logit of a class
is a multiple of the cosine between the two (CLIP, Radford et al., 2021, Section 3.1.2; SigLIP, Zhai
et al., 2023, adds a bias).
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from evovit_jax.data.stored_files import expanded
from evovit_jax.errors import UserError
from evovit_jax.weights.files import read_npz

# Of a network's state and pixels, its features or logits and what else it returns.
Look = Callable[[Any, Array], tuple[Array, Any]]
# What cosines are multiplied by where a file does not say: the bound of CLIP's own scale.
SCALE = 100.0


@dataclasses.dataclass(frozen=True)
class ZeroShotClasses:
    """Classes by their embeddings.

    Attributes:
      file: where they are from.
      embeddings: float32 `[k, d]`, of length 1.
      names: of the classes; None where the file has none.
      scale: what cosines are multiplied by.
      bias: what is added to that.
    """

    file: str
    embeddings: Float[np.ndarray, "k d"]
    names: tuple[str, ...] | None = None
    scale: float = SCALE
    bias: float = 0.0

    def logits(
        self, features: Float[Array, "b d"], embeddings: Float[Array, "k e"]
    ) -> Float[Array, "b k"]:
        """Scaled cosines, float32.

        Raises:
          UserError: features and embeddings are of different sizes.
        """
        if features.shape[-1] != embeddings.shape[-1]:
            raise UserError(
                f"classes {self.file}: its embeddings have {embeddings.shape[-1]} values, the "
                f"model's features {features.shape[-1]}; they must be of the same network"
            )
        features = features.astype(jnp.float32)
        length = jnp.linalg.norm(features, axis=-1, keepdims=True)
        unit = features / jnp.maximum(length, 1e-12)
        cosines = jnp.einsum("bd,kd->bk", unit, embeddings, precision="highest")
        return self.scale * cosines + self.bias

    def in_place_of_head(self, look: Look) -> Look:
        """`look`, made to return logits of the classes in place of features.

        The result takes (state, embeddings): a large matrix is no constant of a program.
        """

        def run(state: tuple[Any, Array], pixels: Array) -> tuple[Array, Any]:
            features, others = look(state[0], pixels)
            return self.logits(features, state[1]), others

        return run


def read_classes(file: str) -> ZeroShotClasses:
    """The classes of an `.npz` file.

    Its arrays are `embeddings` `[classes, values]`, of any length, and if wanted `names`
    `[classes]`, `logit_scale` (the factor, not its logarithm) and `logit_bias`.

    Raises:
      UserError: there is no such file, or an array is missing, of another shape, or not finite.
    """
    path = str(expanded(file, "--classes")) if file else ""
    if not path.endswith(".npz") or not os.path.isfile(path):
        raise UserError(f"classes {file}: there is no .npz file of that name")
    arrays = read_npz(path)
    unknown = sorted(set(arrays) - {"embeddings", "names", "logit_scale", "logit_bias"})
    if "embeddings" not in arrays or unknown:
        has = ", ".join(sorted(arrays)) or "nothing"
        raise UserError(
            f"classes {file} must have the array embeddings, and may have names, logit_scale and "
            f"logit_bias; it has {has}"
        )
    embeddings = _numbers(file, arrays, "embeddings")
    if embeddings.ndim != 2 or not embeddings.size:
        raise UserError(
            f"classes {file}: embeddings has shape {embeddings.shape}, not [classes, values]"
        )
    length = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    if not length.all():
        raise UserError(f"classes {file}: the embedding of class {length.argmin()} is all zero")
    scale = float(_numbers(file, arrays, "logit_scale", SCALE).reshape(()))
    if scale <= 0:
        raise UserError(f"classes {file}: logit_scale={scale:g} must be more than 0")
    return ZeroShotClasses(
        file,
        (embeddings / length).astype(np.float32),
        _names(file, arrays, len(embeddings)),
        scale,
        float(_numbers(file, arrays, "logit_bias", 0.0).reshape(())),
    )


def _numbers(
    file: str, arrays: dict[str, np.ndarray], name: str, default: float | None = None
) -> np.ndarray:
    """An array of finite real numbers; one number where there is a default."""
    value = np.asarray(arrays.get(name, default))
    if not (np.issubdtype(value.dtype, np.floating) or np.issubdtype(value.dtype, np.integer)):
        raise UserError(f"classes {file}: {name} is of {value.dtype}, not real numbers")
    if not np.isfinite(value).all():
        raise UserError(f"classes {file}: {name} has NaN or Inf")
    if default is not None and value.size != 1:
        raise UserError(f"classes {file}: {name} has shape {value.shape}, not that of one number")
    return value


def _names(file: str, arrays: dict[str, np.ndarray], count: int) -> tuple[str, ...] | None:
    if "names" not in arrays:
        return None
    names = arrays["names"]
    if names.dtype.kind != "U" or names.shape != (count,):
        raise UserError(
            f"classes {file}: names is {names.dtype} of shape {names.shape}, "
            f"not {count} texts, one for each embedding"
        )
    return tuple(names.tolist())
