"""Views show what they say, of the pixels that every command sees."""

import numpy as np
import pytest

from evovit_jax.data.decode import open_image
from evovit_jax.data.transforms import evaluation_pixels
from evovit_jax.inference import views


@pytest.mark.parametrize("size", [(40, 40), (41, 47), (60, 38), (37, 80)])
@pytest.mark.parametrize("resize", [16, 19, 24, 40])
def test_views_of_a_crop_with_its_margin(size, resize):
    side, step = 16, 4
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    picture, around = open_image(pixels), views.margin(side, resize, step)
    assert around <= max(0, (resize - side) // 2)
    crop = evaluation_pixels(picture, resize, side, "bicubic")
    larger = evaluation_pixels(picture, resize, side + 2 * around, "bicubic")
    seen = {name: x[0] for name, x in views.views(larger[None], side, step).items()}
    np.testing.assert_array_equal(seen["plain"], crop)
    np.testing.assert_array_equal(seen["flip"][:, ::-1], crop)
    np.testing.assert_array_equal(seen["shift"][:-step, :-step], crop[step:, step:])
    fills = seen["shift"][-1, :-step] if around < step else larger[around + step + side - 1]
    assert fills.any()  # the image's own pixels, or its edge, and no black frame


def test_the_same_patches_of_two_views_are_compared():
    grid = (2, 3)
    plain = np.arange(6)[None]
    flipped = np.array([[2, 1, 0, 5, 4, 3]])
    a, b = views.same_patches("flip", plain, flipped, grid)
    np.testing.assert_array_equal(a, b)
    # Moved down and to the right, what was at row 1, column 1 is at row 0, column 0.
    moved = np.array([[4, 5, -1, -1, -1, -1]])
    a, b = views.same_patches("shift", plain, moved, grid)
    np.testing.assert_array_equal(a, [[4, 5]])
    np.testing.assert_array_equal(b, [[4, 5]])


def test_patches_of_a_convolution_that_overlaps_are_its_steps_apart():
    assert views.patch_side(224, (14, 14)) == 16
    assert views.patch_side(224, (27, 27)) == 8
