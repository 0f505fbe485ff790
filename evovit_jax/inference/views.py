"""Views of the same images, and which of their patches show the same.

Three views: as it is; flipped from left to right; the crop moved one patch down and to the right.
"""

import numpy as np
from jaxtyping import Int, UInt8

PLAIN, FLIP, SHIFT = "plain", "flip", "shift"


def patch_side(side: int, grid: tuple[int, int]) -> int:
    """Pixels from one patch to the next, of images of `side` pixels."""
    return round(side / grid[0])


def margin(side: int, resize: int, step: int) -> int:
    """Pixels of the image around the crop that a move by `step` can show, at most `step`.

    It is even: the centre of a crop that is larger by such a margin is the same to the pixel.
    """
    return min(step, max(0, resize - side) // 2) // 2 * 2


def views(
    pixels: UInt8[np.ndarray, "b m m 3"], side: int, step: int
) -> dict[str, UInt8[np.ndarray, "b s s 3"]]:
    """The views of a batch.

    Args:
      pixels: the crop of `side` pixels with a margin of the same width on all four sides. Where
        that is less than `step`, the edge is repeated.
      side: of a view.
      step: pixels by which the crop moves.
    """
    around = (pixels.shape[1] - side) // 2
    missing = max(0, step - around)
    pixels = np.pad(pixels, ((0, 0), (missing, missing), (missing, missing), (0, 0)), "edge")
    first = around + missing
    plain = pixels[:, first : first + side, first : first + side]
    moved = pixels[:, first + step : first + step + side, first + step : first + step + side]
    return {PLAIN: plain, FLIP: plain[:, :, ::-1], SHIFT: moved}


def same_patches(
    view: str, plain: Int[np.ndarray, "*m p"], seen: Int[np.ndarray, "*m p"], grid: tuple[int, int]
) -> tuple[Int[np.ndarray, "*m q"], Int[np.ndarray, "*m q"]]:
    """What maps of the plain view and of another one say of the patches that are in both."""
    plain, seen = (x.reshape(*x.shape[:-1], *grid) for x in (plain, seen))
    if view == FLIP:
        seen = seen[..., ::-1]
    if view == SHIFT:
        plain, seen = plain[..., 1:, 1:], seen[..., :-1, :-1]
    plain, seen = (x.reshape(*x.shape[:-2], -1) for x in (plain, seen))
    return plain, seen
