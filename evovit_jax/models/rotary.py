"""Rotary positions of patches on a grid, as DINOv3 and the Perception Encoder have them.

The channels of queries and keys are taken in pairs, and each pair is turned by an angle that grows
with the patch's row or column (Su et al., 2021, "RoFormer", in two dimensions). Class tokens and
registers are not turned, nor is a token that has no place, such as one that a reduction made.

- "dinov3" (Simeoni et al., 2025): coordinates in [-1, 1], each axis by its own size, so that
  another size needs nothing; the pairs are the channels c and c + head_dim / 2.
- "axial" (Bolya et al., 2025, "Perception Encoder"): coordinates of a reference grid, columns
  before rows; the pairs are neighbours, 2c and 2c + 1.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# The temperatures of the published models: how much slower the slowest pair turns.
TEMPERATURES = {"dinov3": 100.0, "axial": 10000.0}


@dataclasses.dataclass(frozen=True)
class Rotation:
    """How each token's queries and keys are turned.

    Attributes:
      cos: float32 `[b, n, c]`, of each channel's angle.
      sin: float32 `[b, n, c]`.
      neighbours: whether pairs are neighbours, or half of the channels apart.
    """

    cos: Float[Array, "b n c"]
    sin: Float[Array, "b n c"]
    neighbours: bool


def turned(x: Array, rotation: Rotation | None, *, tokens_first: bool = False) -> Array:
    """Queries or keys `[b, h, n, c]` (`tokens_first`: `[b, n, h, c]`) after `rotation`."""
    if rotation is None:
        return x
    axis = 2 if tokens_first else 1
    cos, sin = (jnp.expand_dims(part, axis) for part in (rotation.cos, rotation.sin))
    wide = x.astype(jnp.float32)
    if rotation.neighbours:
        pairs = wide.reshape(*x.shape[:-1], -1, 2)
        partner = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    else:
        first, second = jnp.split(wide, 2, axis=-1)
        partner = jnp.concatenate([-second, first], axis=-1)
    return (wide * cos + partner * sin).astype(x.dtype)


def rotation_of(
    kind: str,
    place: Int[Array, "b n"],
    *,
    prefix: int,
    grid: tuple[int, int],
    head_dim: int,
    temperature: float,
    reference: tuple[int, int],
) -> Rotation:
    """The rotation of tokens at `place`.

    Args:
      kind: "dinov3" or "axial".
      place: the input token whose position each token has, class tokens counted; -1 for none.
      prefix: how many of the input tokens are class tokens and registers.
      grid: (rows, columns) of the input's patches.
      head_dim: channels of a head, a multiple of 4.
      temperature: see `TEMPERATURES`.
      reference: (rows, columns) of the grid that "axial" coordinates are of.
    """
    rows, columns = (
        _angles(kind, size, of, head_dim, temperature)
        for size, of in zip(grid, reference, strict=True)
    )
    cos, sin = (_on_grid(kind, turn(rows), turn(columns)) for turn in (np.cos, np.sin))
    return at_places(cos, sin, place, prefix=prefix, neighbours=kind == "axial")


def at_places(
    cos: Float[Array, "p c"],
    sin: Float[Array, "p c"],
    place: Int[Array, "b n"],
    *,
    prefix: int,
    neighbours: bool,
) -> Rotation:
    """The rotation of tokens at `place`, of the values that each patch has; see `rotation_of`."""
    # The last row, which index -1 means, and those of the prefix are angles of 0.
    index = jnp.where(place < 0, prefix + len(cos), place)
    cos, sin = (
        jnp.pad(values, ((prefix, 1), (0, 0)), constant_values=still)[index]
        for values, still in ((cos, 1.0), (sin, 0.0))
    )
    return Rotation(cos, sin, neighbours)


def _angles(
    kind: str, size: int, reference: int, head_dim: int, temperature: float
) -> Float[np.ndarray, "size m"]:
    """The angles of each row (or column), for a quarter of a head's channels."""
    m = np.arange(head_dim // 4)
    speed = temperature ** (-m / (head_dim / 4))
    place = np.arange(size)
    if kind == "dinov3":
        coordinate = 2 * np.pi * ((place + 0.5) / size * 2 - 1)
    else:
        coordinate = (place + 1) / size * reference
    return coordinate[:, None] * speed[None]


def _on_grid(
    kind: str, rows: Float[np.ndarray, "r m"], columns: Float[np.ndarray, "c m"]
) -> Float[Array, "n k"]:
    """Values of rows and of columns beside one another in each place, one for every channel."""
    shape = (len(rows), len(columns), rows.shape[1])
    of_rows = jnp.broadcast_to(jnp.asarray(rows, jnp.float32)[:, None], shape)
    of_columns = jnp.broadcast_to(jnp.asarray(columns, jnp.float32)[None], shape)
    if kind == "dinov3":
        values = jnp.tile(jnp.concatenate([of_rows, of_columns], axis=-1), 2)
    else:
        values = jnp.repeat(jnp.concatenate([of_columns, of_rows], axis=-1), 2, axis=-1)
    return values.reshape(-1, values.shape[-1])
