"""How a Swin Transformer cuts a map into windows, each of which attends within itself.

Liu et al., 2021 (arXiv:2103.14030), sections 3.2 and 3.3: in every other block the map is shifted
cyclically by half a window before it is cut; a window that then holds places from opposite edges
of the map gets a mask between them. Everything that follows from a map's size is computed with
NumPy while a program is traced.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

APART = -100.0  # added to the attention logits of two places that a shift alone brought together


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a map, in raster order; each sequence is (rows, columns).

    Attributes:
      grid: of the map.
      size: of a window.
      shift: by which the map is rolled towards its beginning before it is cut.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int]

    @classmethod
    def of(cls, grid: tuple[int, int], size: tuple[int, int], *, shifted: bool) -> "Windows":
        """The windows of a map, of at most `size`.

        Along an axis on which the map is not larger than a window, the map is the window and is
        not shifted.
        """
        fitting = tuple(min(pair) for pair in zip(grid, size, strict=True))
        shift = tuple(
            side // 2 if shifted and places > side else 0
            for places, side in zip(grid, fitting, strict=True)
        )
        return cls(grid, fitting, shift)

    @property
    def counts(self) -> tuple[int, int]:
        """Rows and columns of windows: the last ones may reach beyond the map."""
        rows, columns = (
            -(-places // side) for places, side in zip(self.grid, self.size, strict=True)
        )
        return rows, columns

    @property
    def padded(self) -> tuple[int, int]:
        """The map's grid with what the last windows have beyond it."""
        (rows, columns), (height, width) = self.counts, self.size
        return rows * height, columns * width

    def split(self, x: Float[Array, "b h w d"]) -> Float[Array, "b v n d"]:
        """The n places of each of v windows; those beyond the map are zero."""
        shifted = jnp.roll(x, [-side for side in self.shift], axis=(1, 2)) if any(self.shift) else x
        beyond = (end - places for end, places in zip(self.padded, self.grid, strict=True))
        whole = jnp.pad(shifted, ((0, 0), *((0, more) for more in beyond), (0, 0)))
        return _cut(whole, self)

    def join(self, x: Float[Array, "b v n d"]) -> Float[Array, "b h w d"]:
        """The map of which `split` made the windows."""
        (rows, columns), (height, width) = self.counts, self.size
        x = x.reshape(x.shape[0], rows, columns, height, width, x.shape[-1]).swapaxes(2, 3)
        x = x.reshape(x.shape[0], *self.padded, x.shape[-1])
        x = x[:, : self.grid[0], : self.grid[1]]
        return jnp.roll(x, self.shift, axis=(1, 2)) if any(self.shift) else x

    def mask(self) -> Float[np.ndarray, "v n n"] | None:
        """What the attention logits of a window's places get; None where nothing is shifted.

        Places of one window may attend to one another if no edge of the map came between them.
        """
        if not any(self.shift):
            return None
        rows, columns = (
            _region(*axis) for axis in zip(self.padded, self.size, self.shift, strict=True)
        )
        regions = _cut((3 * rows[:, None] + columns)[None, :, :, None], self)[0, :, :, 0]
        same = regions[:, :, None] == regions[:, None, :]
        return np.where(same, 0.0, APART).astype(np.float32)

    def bias_index(self, table: tuple[int, int]) -> Int[np.ndarray, "n n"]:
        """Which row of a table of biases belongs to a query (row) and a key (column) of a window.

        The table is for windows of that size, or smaller ones: its rows are the differences
        between a query's place and a key's, rows of the map first.
        """
        height, width = self.size
        ys, xs = np.divmod(np.arange(height * width), width)
        dy, dx = (at[:, None] - at[None, :] for at in (ys, xs))
        return (dy + table[0] - 1) * (2 * table[1] - 1) + dx + table[1] - 1


def table_rows(window: tuple[int, int]) -> int:
    """How many differences there are between the places of a window."""
    return (2 * window[0] - 1) * (2 * window[1] - 1)


def _cut(x, windows: Windows):
    """The places `[b, v, n, d]` of each window of a padded map; of NumPy's or JAX's arrays."""
    (rows, columns), (height, width) = windows.counts, windows.size
    x = x.reshape(x.shape[0], rows, height, columns, width, x.shape[-1]).swapaxes(2, 3)
    return x.reshape(x.shape[0], rows * columns, height * width, x.shape[-1])


def _region(end: int, side: int, shift: int) -> Int[np.ndarray, "n"]:
    """Which places of a shifted axis, that ends at `end`, lay beside one another before."""
    places = np.arange(end)
    if not shift:
        return np.zeros_like(places)
    return (places >= end - side).astype(int) + (places >= end - shift)
