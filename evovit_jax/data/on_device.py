"""What happens to a batch on the device: normalisation, random erasing, mixup and cutmix.

Pure functions of a key and a batch. Partners are neighbouring rows, and ratios and boxes are drawn
from the key alone, so a batch that is split over devices (an even number of rows on each) is mixed
without communication and exactly as on one device. timm's loaders erase before they mix; so should
a train step: `normalize`, `random_erasing`, `mix`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8
from scipy.special import betaincinv

# image: uint8 [b h w 3]; label: int32 [b]; in evaluation mask: bool [b].
Batch = dict[str, jax.Array]


def normalize(
    images: UInt8[Array, "b h w c"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b h w c"]:
    """Pixels to float32, `(pixel / 255 - mean) / std` for each channel."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    shape = (1, 1, 1, -1)
    return images.astype(jnp.float32) * scale.reshape(shape) - offset.reshape(shape)


def partner(values: Float[Array, "b *rest"]) -> Float[Array, "b *rest"]:
    """Rows 2i and 2i + 1 exchanged; an odd last row is its own partner."""
    pairs = values.shape[0] // 2
    even = values[: 2 * pairs].reshape(pairs, 2, *values.shape[1:])
    swapped = jnp.stack([even[:, 1], even[:, 0]], axis=1).reshape(2 * pairs, *values.shape[1:])
    if values.shape[0] % 2:
        return jnp.concatenate([swapped, values[-1:]])
    return swapped


def mix(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b k"],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    switch_prob: float = 0.5,
    prob: float = 1.0,
    group: int = 0,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019, algorithm A1), as timm switches them.

    Args:
        key: of this step; the same on every device.
        images: any float dtype, normalised.
        targets: a distribution over classes for each row.
        mixup_alpha: lambda ~ Beta(alpha, alpha); 0 = no mixup.
        cutmix_alpha: likewise, the share of the image that is kept; 0 = no cutmix.
        switch_prob: of cutmix, where both are on.
        prob: that a group is mixed at all.
        group: rows that share one ratio and one box (timm: one GPU's batch); 0 = all.

    Raises:
        ValueError: the group is odd or does not divide the batch.
    """
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return images, targets
    batch, height, width, _ = images.shape
    size = group or batch
    if batch % size or (group and group % 2):
        raise ValueError(f"groups of {group} rows must be even and divide a batch of {batch}")
    weights, ratio = _draw_weights(
        key,
        (batch // size, height, width),
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        switch_prob=switch_prob,
        prob=prob,
    )
    weights = jnp.repeat(weights, size, axis=0)[..., None].astype(images.dtype)
    ratio = jnp.repeat(ratio, size)[:, None].astype(targets.dtype)
    return (
        images * weights + partner(images) * (1 - weights),
        targets * ratio + partner(targets) * (1 - ratio),
    )


def _draw_weights(
    key: Key[Array, ""],
    shape: tuple[int, int, int],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    switch_prob: float,
    prob: float,
) -> tuple[Float[Array, "g h w"], Float[Array, "g"]]:
    """The weight of every pixel of an image itself, and of its label, for each group; float32."""
    groups, height, width = shape
    on, switch, mixup, cutmix, box = jax.random.split(key, 5)
    kept = jnp.ones(shape, jnp.float32)
    weights, ratio = kept, jnp.ones(groups, jnp.float32)
    if mixup_alpha > 0:
        ratio = _beta(mixup, mixup_alpha, groups)
        weights = kept * ratio[:, None, None]
    if cutmix_alpha > 0:
        area = _beta(cutmix, cutmix_alpha, groups)
        inside = _cutmix_box(box, area, height, width)
        share = 1 - inside.mean((1, 2), dtype=jnp.float32)
        use = jax.random.uniform(switch, (groups,)) < (switch_prob if mixup_alpha > 0 else 1.0)
        weights = jnp.where(use[:, None, None], 1 - inside, weights)
        ratio = jnp.where(use, share, ratio)
    mixed = jax.random.uniform(on, (groups,)) < prob
    return jnp.where(mixed[:, None, None], weights, kept), jnp.where(mixed, ratio, 1.0)


def _beta(key: Key[Array, ""], alpha: float, count: int) -> Float[Array, "{count}"]:
    """Draws from Beta(alpha, alpha) by its quantiles.

    `jax.random.beta` rejects draws in a loop, which devices that share a batch would end together.
    """
    steps = 4096
    table = jnp.asarray(betaincinv(alpha, alpha, np.linspace(0, 1, steps + 1)), jnp.float32)
    at = jax.random.uniform(key, (count,)) * steps
    low = jnp.floor(at)
    index = low.astype(jnp.int32)
    return table[index] + (at - low) * (table[index + 1] - table[index])


def _cutmix_box(
    key: Key[Array, ""], area: Float[Array, "g"], height: int, width: int
) -> Float[Array, "g h w"]:
    """1 inside a box of about 1 - area around a uniform centre, clipped to the image; else 0."""
    side = jnp.sqrt(1 - area)
    centres = jax.random.uniform(key, (2, area.shape[0]))
    rows = _span(centres[0], side, height)
    columns = _span(centres[1], side, width)
    return rows[:, :, None] * columns[:, None, :]


def _span(
    centre: Float[Array, "g"], side: Float[Array, "g"], length: int
) -> Float[Array, "g {length}"]:
    """1 at the pixels within half of floor(side * length) of the centre pixel; else 0."""
    middle = jnp.floor(centre * length)
    half = jnp.floor(jnp.floor(side * length) / 2)
    at = jnp.arange(length, dtype=jnp.float32)[None, :]
    inside = (at >= (middle - half)[:, None]) & (at < (middle + half)[:, None])
    return inside.astype(jnp.float32)


def random_erasing(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    *,
    prob: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    tries: int = 10,
) -> Float[Array, "b h w c"]:
    """Puts normal noise in a random rectangle of some images (Zhong et al. 2020, algorithm 1).

    timm's mode "pixel": each value of the rectangle is drawn from N(0, 1), which is what
    normalised pixels look like. The area is uniform in `area` (a share of the image), the aspect
    ratio log-uniform in `ratio`; the first of `tries` rectangles that fits is taken.

    Args:
        key: of this step; each row draws its own.
        images: any float dtype, normalised.
        prob: that an image is erased.
    """
    if prob <= 0:
        return images
    inside = _erased(key, images.shape, prob, area, ratio, tries)
    noise = jax.random.normal(jax.random.fold_in(key, 1), images.shape, images.dtype)
    return jnp.where(inside[..., None], noise, images)


def _erased(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    prob: float,
    area: tuple[float, float],
    ratio: tuple[float, float],
    tries: int,
):
    """Whether each pixel is erased, bool [b h w]."""
    batch, height, width = shape[:3]
    which, size, aspect, top, left = jax.random.split(jax.random.fold_in(key, 0), 5)
    areas = jax.random.uniform(size, (batch, tries), minval=area[0], maxval=area[1])
    areas = areas * (height * width)
    low, high = jnp.log(jnp.asarray(ratio, jnp.float32))
    aspects = jnp.exp(jax.random.uniform(aspect, (batch, tries), minval=low, maxval=high))
    h, w = jnp.round(jnp.sqrt(areas * aspects)), jnp.round(jnp.sqrt(areas / aspects))
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    h = jnp.take_along_axis(h, first, axis=1)
    w = jnp.take_along_axis(w, first, axis=1)
    y = jnp.floor(jax.random.uniform(top, (batch, 1)) * (height - h + 1))
    x = jnp.floor(jax.random.uniform(left, (batch, 1)) * (width - w + 1))
    rows = jnp.arange(height, dtype=jnp.float32)[None, :]
    columns = jnp.arange(width, dtype=jnp.float32)[None, :]
    inside_rows = (rows >= y) & (rows < y + h)
    inside_columns = (columns >= x) & (columns < x + w)
    erase = (jax.random.uniform(which, (batch, 1)) < prob) & fits.any(axis=1, keepdims=True)
    return (inside_rows & erase)[:, :, None] & inside_columns[:, None, :]
