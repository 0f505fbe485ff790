"""The fast resize against Pillow's, whose kernels it uses."""

import numpy as np
import pytest
from PIL import Image

from evovit_jax.data import resize as module
from evovit_jax.data.resize import PILLOW, resize
from evovit_jax.errors import UserError


def photograph(width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    tiny = Image.fromarray(rng.integers(0, 255, (height // 6, width // 6, 3), np.uint8))
    return np.asarray(tiny.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [16, 50, 113, 224])
@pytest.mark.parametrize("name", sorted(PILLOW))
@pytest.mark.parametrize("box", [None, (3.25, 5.5, 90.75, 80.0)])
@pytest.mark.parametrize("grey", [False, True])
def test_values_are_pillows(size, name, box, grey):
    pixels = photograph(120, 90)
    if grey:
        pixels = pixels[..., 1]
    got = resize(pixels, size, name, box)
    want = np.asarray(Image.fromarray(pixels).resize((size, size), PILLOW[name], box=box))
    assert got.shape == want.shape
    assert got.dtype == np.uint8
    difference = np.abs(got.astype(int) - want)
    # Rounding between the two passes, and their order.
    assert difference.mean() < 0.25
    assert (difference > 2).mean() < 0.01


def test_strides_do_not_matter():
    pixels = photograph(120, 90)
    want = resize(np.ascontiguousarray(pixels[5:80, 90:10:-1]), 32, "bicubic")
    assert (resize(pixels[5:80, 90:10:-1], 32, "bicubic") == want).all()


def test_without_the_fast_library_pillow_does_the_work(monkeypatch):
    monkeypatch.setattr(module, "cykooz_resizer", None)
    pixels = photograph(120, 90)
    want = Image.fromarray(pixels).resize((32, 32), PILLOW["bicubic"])
    assert (resize(pixels, 32, "bicubic") == np.asarray(want)).all()


def test_nothing_to_do():
    pixels = photograph(60, 60)
    assert resize(pixels, 60, "bicubic") is pixels


def test_unknown_name():
    with pytest.raises(UserError, match="did you mean 'bicubic'"):
        module.interpolation("bicubical")
