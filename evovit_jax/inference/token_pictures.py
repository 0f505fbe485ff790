"""Pictures of where an image's patches went, from the source map of any reducer."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evovit_jax.errors import printable

# How much of the image is left under a merged and under a dropped patch.
MERGED_SHARE, DROPPED_SHARE = 0.35, 0.12
DROPPED_COLOUR = np.array([1.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture: an image under the token map of the blocks from `first` to `last`.

    Attributes:
      first: the first block with this map.
      last: the last block with this map.
      kept: bool `[rows, columns]`, patches with a token of their own.
      group: int `[rows, columns]`, the token that holds each patch, negative when dropped.
    """

    first: int
    last: int
    kept: Bool[np.ndarray, "r c"]
    group: Int[np.ndarray, "r c"]

    @property
    def title(self) -> str:
        """Blocks and counts, `blocks 4-7: 98 kept, 98 into 1`."""
        blocks = (
            f"block {self.first}"
            if self.first == self.last
            else (f"blocks {self.first}-{self.last}")
        )
        merged = (self.group >= 0) & ~self.kept
        parts = [f"{int(self.kept.sum())} kept"]
        if merged.any():
            parts.append(f"{int(merged.sum())} into {len(np.unique(self.group[merged]))}")
        if (self.group < 0).any():
            parts.append(f"{int((self.group < 0).sum())} out")
        return f"{blocks}: {', '.join(parts)}"


def panels(
    token_maps: list[Int[np.ndarray, "N"]], *, prefix: int, grid: tuple[int, int]
) -> list[Panel]:
    """The panels of one image: one for each run of blocks between which no token moved.

    Args:
      token_maps: a source map a block, `[N]` with the class tokens first.
      prefix: number of class tokens.
      grid: (rows, columns) of the patch tokens.
    """
    shown: list[Panel] = []
    for block, token_map in enumerate(token_maps):
        held = np.bincount(np.maximum(token_map, 0), weights=token_map >= 0)
        patches = token_map[prefix:]
        kept = (patches >= 0) & (held[np.maximum(patches, 0)] == 1)
        kept, group = kept.reshape(grid), patches.reshape(grid)
        if shown and (shown[-1].kept == kept).all() and same_groups(shown[-1].group, group):
            shown[-1] = dataclasses.replace(shown[-1], last=block)
        else:
            shown.append(Panel(first=block, last=block, kept=kept, group=group))
    return shown


def same_groups(a: Int[np.ndarray, "r c"], b: Int[np.ndarray, "r c"]) -> bool:
    """Whether two maps group the patches alike, whatever the tokens' places are."""
    if ((a < 0) != (b < 0)).any():
        return False
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))


def paint(image: UInt8[np.ndarray, "h w 3"], panel: Panel) -> Float[np.ndarray, "h w 3"]:
    """The image as a panel shows it, float in [0, 1].

    Kept patches are as they were, merged ones fade into the mean colour of their token's patches,
    dropped ones into white.
    """
    rows, columns = panel.group.shape
    height, width = image.shape[:2]
    picture = image.astype(np.float64) / 255
    row_of = np.arange(height) * rows // height
    column_of = np.arange(width) * columns // width
    group = panel.group[np.ix_(row_of, column_of)]
    kept = panel.kept[np.ix_(row_of, column_of)]
    painted = picture.copy()
    for token in np.unique(panel.group[~panel.kept & (panel.group >= 0)]):
        inside = (group == token) & ~kept
        painted[inside] = blend(picture[inside], picture[inside].mean(axis=0), MERGED_SHARE)
    out = group < 0
    painted[out] = blend(picture[out], DROPPED_COLOUR, DROPPED_SHARE)
    return painted


def blend(pixels: np.ndarray, colour: np.ndarray, share: float) -> np.ndarray:
    """`share` of the pixels, the rest the colour."""
    return share * pixels + (1 - share) * colour


def figure(
    image: UInt8[np.ndarray, "h w 3"], shown: list[Panel], *, title: str, side: float = 2.6
) -> Figure:
    """The image and its panels in a row (six at most in each), `side` inches each."""
    per_row = min(6, 1 + len(shown))
    rows = -(-(1 + len(shown)) // per_row)
    drawing = Figure(figsize=(side * per_row, (side + 0.35) * rows + 0.3), layout="constrained")
    FigureCanvasAgg(drawing)
    drawing.suptitle(printable(title), fontsize=10, parse_math=False)  # a name is no formula
    axes = drawing.subplots(rows, per_row, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(image, interpolation="nearest")
    axes[0].set_title("image", fontsize=8)
    for axis, panel in zip(axes[1:], shown, strict=False):
        axis.imshow(paint(image, panel), interpolation="nearest", vmin=0, vmax=1)
        axis.set_title(panel.title, fontsize=8)
    return drawing
