"""Pictures of where an image's patches went, from the source map of any reducer."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evovit_jax.errors import printable, shortened

# How much of the image is left under a merged and under a dropped patch.
MERGED_SHARE, DROPPED_SHARE = 0.35, 0.12
DROPPED_COLOUR = np.array([1.0, 1.0, 1.0])
MOST_LAYERS = 6  # beside an image in a row
LONGEST_LABEL = 26  # characters beside a row
GAP = 4  # pixels between two pictures of a strip


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
    token_maps: Iterable[Int[np.ndarray, "N"]], *, prefix: int, grid: tuple[int, int]
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


def block_of(shown: list[Panel], block: int) -> Panel:
    """The panel of one image that shows `block`."""
    return next(panel for panel in shown if panel.first <= block <= panel.last)


def changing_blocks(rows: list[list[Panel]], most: int = MOST_LAYERS) -> list[int]:
    """The blocks at which tokens move in any of several images, at least one.

    Where there are more than `most`, so many of them, evenly spaced, the last among them.
    """
    untouched = {shown[0].first for shown in rows if shown[0].kept.all()}
    found = sorted({panel.first for shown in rows for panel in shown} - untouched)
    return spaced(found or [rows[0][-1].last], most)


def spaced(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spaced, the last among them."""
    count = min(most, len(values))
    return [values[len(values) * (i + 1) // count - 1] for i in range(count)]


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


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a grid of pictures.

    Attributes:
      labels: lines that stand beside it.
      image: what the network sees.
      panels: of `panels`.
    """

    labels: tuple[str, ...]
    image: UInt8[np.ndarray, "h w 3"]
    panels: list[Panel]


def grid(rows: list[Row], *, side: float = 1.5) -> Figure:
    """Images below each other, each with the tokens that are left at several blocks to its right.

    The form of Figure 1 in Xu et al., 2021 (https://arxiv.org/abs/2108.01390). The blocks are those
    of `changing_blocks`; a picture has `side` inches.
    """
    blocks = changing_blocks([row.panels for row in rows])
    left, top, gap = 0.16 * len(rows[0].labels) + 0.08, 0.24, 0.05  # inches
    width = left + (1 + len(blocks)) * (side + gap)
    height = top + len(rows) * (side + gap)
    drawing = Figure(figsize=(width, height))
    FigureCanvasAgg(drawing)
    places = {"left": left / width, "right": 1 - gap / width, "wspace": gap / side}
    places |= {"bottom": gap / height, "top": 1 - top / height, "hspace": gap / side}
    axes = drawing.subplots(len(rows), 1 + len(blocks), squeeze=False, gridspec_kw=places)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, title in zip(axes[0], ["input", *(f"block {i}" for i in blocks)], strict=True):
        axis.set_title(title, fontsize=8, pad=4)
    beside = {"rotation": 90, "ha": "right", "va": "center", "fontsize": 7, "parse_math": False}
    for row, line in zip(rows, axes, strict=True):
        pictures = [row.image, *(paint(row.image, block_of(row.panels, i)) for i in blocks)]
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest", vmin=0, vmax=1)
        label = "\n".join(shortened(printable(text), LONGEST_LABEL) for text in row.labels)
        line[0].text(-0.03, 0.5, label, transform=line[0].transAxes, **beside)
    return drawing


def strip(
    image: UInt8[np.ndarray, "h w 3"], shown: list[Panel], *, most: int, side: int
) -> UInt8[np.ndarray, "y x 3"]:
    """The image and the tokens of at most `most` blocks beside each other, each near `side` pixels.

    Made smaller or larger by whole numbers of pixels, a gap between two, without text.
    """
    blocks = spaced(range(shown[-1].last + 1), most)
    pictures = [image / 255.0, *(paint(image, block_of(shown, i)) for i in blocks)]
    step, times = max(1, image.shape[0] // side), max(1, side // image.shape[0])
    height, width = (n - n % step for n in image.shape[:2])
    whole = np.stack(pictures)[:, :height, :width]
    smaller = whole.reshape(len(whole), height // step, step, width // step, step, 3)
    tiles = smaller.mean(axis=(2, 4)).repeat(times, axis=1).repeat(times, axis=2)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=1.0)
    return np.round(255 * np.concatenate(tiles, axis=1)).astype(np.uint8)[:, :-GAP]
