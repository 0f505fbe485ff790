"""Antialiased resizing of uint8 arrays, as Pillow resizes, in a fifth of its time.

The work is done by cykooz_resizer (the SIMD convolutions of the crate fast_image_resize), whose
kernels are Pillow's; its values differ by one here and there, by several at a few hard edges, so
what is measured (the evaluation transform) stays with Pillow. Where it has no wheel (ARM Linux),
Pillow does this work too.
"""

import threading

import numpy as np
from PIL import Image

from evovit_jax.errors import UserError, suggestion

try:
    import cykooz_resizer
except ImportError:
    cykooz_resizer = None

PILLOW = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_FILTERS = {"bicubic": "catmull_rom", "bilinear": "bilinear", "lanczos": "lanczos3"}
FloatBox = tuple[float, float, float, float]  # left, upper, right, lower

_local = threading.local()  # a resizer holds buffers, so each thread has its own


def interpolation(name: str) -> str:
    """The name, if it is one of `PILLOW`'s.

    Raises:
        UserError: it is not.
    """
    if name not in PILLOW:
        raise UserError(f"interpolation {name!r}: {suggestion(name, tuple(PILLOW))}")
    return name


def resize(
    pixels: np.ndarray, size: int, filter_name: str, box: FloatBox | None = None
) -> np.ndarray:
    """Resizes an image, or the part of it in a box, to a square.

    Args:
        pixels: uint8 [h w] or [h w 3], any strides.
        size: pixels of the result, height and width.
        filter_name: "bicubic", "bilinear", "lanczos" or "nearest".
        box: in pixels, fractions count; the filter reaches over its edges where there are pixels.

    Returns:
        uint8 [size size] or [size size 3].
    """
    height, width = pixels.shape[:2]
    if box is None and (height, width) == (size, size):
        return pixels
    if cykooz_resizer is None or filter_name == "nearest":  # which has nothing to convolve
        image = Image.fromarray(pixels).resize((size, size), PILLOW[filter_name], box=box)
        return np.asarray(image)
    kind = cykooz_resizer.PixelType.U8 if pixels.ndim == 2 else cykooz_resizer.PixelType.U8x3
    source = cykooz_resizer.ImageData(width, height, kind, pixels.tobytes())
    target = cykooz_resizer.ImageData(size, size, kind)
    resizer, options = _resizer(filter_name)
    if box is not None:
        options = options.copy()
        options.crop_box = cykooz_resizer.CropBox(box[0], box[1], box[2] - box[0], box[3] - box[1])
    resizer.resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(size, size, *pixels.shape[2:])


def _resizer(filter_name: str):
    """This thread's resizer and its options for a filter."""
    if not hasattr(_local, "resizer"):
        _local.resizer = cykooz_resizer.Resizer()
        _local.options = {
            name: cykooz_resizer.ResizeOptions(
                resize_alg=cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType[theirs]),
                use_alpha=False,
            )
            for name, theirs in _FILTERS.items()
        }
    return _local.resizer, _local.options[filter_name]
