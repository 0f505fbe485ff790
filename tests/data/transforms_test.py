"""Geometry of single images, against definitions and worked cases."""

import io
import random
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from evovit_jax.config import get_config
from evovit_jax.data import decode, transforms
from evovit_jax.data.augment import EvalTransform, TrainTransform
from evovit_jax.data.resize import resize
from evovit_jax.errors import UserError

BICUBIC = Image.Resampling.BICUBIC


def picture(width: int, height: int) -> Image.Image:
    """Smooth, and different at every place."""
    y, x = np.mgrid[:height, :width]
    channels = [255 * x / width, 255 * y / height, 127 + 100 * np.sin(x / 9) * np.cos(y / 7)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def stored(image: Image.Image, kind: str = "jpeg", **options) -> decode.Picture:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return decode.open_image(file.getvalue())


def test_random_boxes_are_inside_and_have_the_asked_area_and_aspect():
    rng = random.Random(0)
    boxes = np.array(
        [transforms.random_box(rng, 500, 375, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(2000)]
    )
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 500).all()
    assert (boxes[:, 3] <= 375).all()
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    area = width * height / (500 * 375)
    assert area.min() > 0.079
    assert 0.42 < area.mean() < 0.5  # 0.54, less the large ones that do not fit
    assert (width / height).min() > 0.74
    assert (width / height).max() < 1.35


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))]
)
def test_box_of_an_extreme_image_is_centred(size, box):
    # No part of at least 8 % of these has an aspect ratio within 3/4..4/3.
    got = transforms.random_box(random.Random(0), *size, (0.5, 1.0), (3 / 4, 4 / 3))
    assert got == box


def test_a_whole_box_is_a_resize():
    image = picture(300, 200)
    got = transforms.random_resized_crop(
        decode.open_image(image), random.Random(0), 64, (1.0, 1.0), (1.5, 1.5), "bicubic"
    )
    assert (got == resize(np.asarray(image), 64, "bicubic")).all()


def test_resize_and_centre_crop_round_as_torchvision():
    image = picture(333, 250)
    got = transforms.resize_center_crop(np.asarray(image), 256, 224, "bicubic")
    # int(256 * 333 / 250) = 340; offsets round(116 / 2), round(32 / 2)
    whole = np.asarray(image.resize((340, 256), BICUBIC))
    assert (got == whole[16:240, 58:282]).all()


def test_a_small_image_is_padded_with_zeros_in_evaluation():
    got = transforms.resize_center_crop(np.asarray(picture(20, 20)), 20, 24, "bicubic")
    assert got.shape == (24, 24, 3)
    assert (got[:2] == 0).all()
    assert (got[2:22, 2:22] == np.asarray(picture(20, 20))).all()


def test_pad_crop_moves_whole_pixels():
    image = np.asarray(picture(16, 16))
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
    windows = {padded[y : y + 16, x : x + 16].tobytes() for y in range(7) for x in range(7)}
    rng = random.Random(0)
    got = {transforms.pad_crop(image, rng, 3).tobytes() for _ in range(500)}
    assert got == windows


def test_random_shift_is_a_resize_when_it_does_not_move():
    image = np.asarray(picture(8, 8))
    got = transforms.random_shift(image, random.Random(0), 32, 0, "bicubic")
    assert (got == resize(image, 32, "bicubic")).all()


def test_random_shift_stays_within_its_pixels():
    image = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 32, 0)
    rng = random.Random(0)
    middles = [
        transforms.random_shift(image, rng, 32, 3, "bicubic")[16, 16] / 8 for _ in range(300)
    ]
    assert 13 <= min(middles) < 13.5
    assert 18.5 < max(middles) <= 19.1


def test_simple_random_crop_keeps_nearly_everything():
    image = np.asarray(picture(60, 40))
    whole = np.asarray(picture(60, 40).resize((48, 32), BICUBIC))
    padded = np.pad(whole, ((4, 4), (4, 4), (0, 0)), "reflect")
    windows = {padded[y : y + 32, x : x + 32].tobytes() for y in range(9) for x in range(25)}
    rng = random.Random(0)
    got = {
        transforms.simple_random_crop(image, rng, 32, 4, "bicubic").tobytes() for _ in range(1000)
    }
    assert got <= windows
    assert len(got) > 180


def test_color_jitter_keeps_grey_grey_and_strength_zero_changes_nothing():
    image = picture(20, 20)
    assert transforms.color_jitter(image, random.Random(0), 0.0).tobytes() == image.tobytes()
    grey = picture(20, 20).convert("L").convert("RGB")
    got = np.asarray(transforms.color_jitter(grey, random.Random(0), 0.4))
    assert (got[..., 0] == got[..., 1]).all()
    assert (got != np.asarray(grey)).any()


def small_config(**augment):
    config = get_config()
    config.model.image_size = 24
    config.eval_transform.crop_fraction = 1.0
    with config.augment.unlocked():
        config.augment.update({"randaugment": "", "color_jitter": 0.0, "flip": 0.0, **augment})
    return config


@pytest.mark.parametrize("crop", transforms.CROPS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P", "1", "I;16"])
def test_every_crop_takes_every_kind_of_image(crop, mode):
    transform = TrainTransform(small_config(crop=crop, interpolation="random", flip=0.5))
    image = picture(40, 30)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    else:
        image = image.convert(mode)
    got = transform(decode.open_image(image), random.Random(0))
    assert got.shape == (24, 24, 3)
    assert got.dtype == np.uint8
    assert got.std() > 1


def test_flip_and_no_crop():
    transform = TrainTransform(small_config(crop="none", flip=1.0))
    image = picture(24, 24)
    assert (
        transform(decode.open_image(image), random.Random(0)) == np.asarray(image)[:, ::-1]
    ).all()
    assert (EvalTransform(small_config())(decode.open_image(image)) == np.asarray(image)).all()


def test_evaluation_resizes_by_the_crop_fraction_unless_told():
    config = small_config()
    config.eval_transform.crop_fraction = 0.875
    image = picture(60, 60)
    opened = decode.open_image(image)
    # int(24 / 0.875) = 27
    want = np.asarray(image.resize((27, 27), BICUBIC))[2:26, 2:26]
    assert (EvalTransform(config)(opened) == want).all()
    config.eval_transform.resize = 60
    assert (EvalTransform(config)(opened) == np.asarray(image)[18:42, 18:42]).all()


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'rrc'"):
        TrainTransform(small_config(crop="rrcc"))
    with pytest.raises(UserError, match="did you mean 'bicubic'"):
        TrainTransform(small_config(interpolation="cubic"))


def test_the_nearest_pixel_is_an_interpolation():
    config = get_config()
    config.model.image_size = 8
    config.eval_transform.resize, config.eval_transform.interpolation = 10, "nearest"
    image = picture(31, 23)
    pixels = EvalTransform(config)(decode.open_image(image))
    want = image.resize((13, 10), Image.Resampling.NEAREST).crop((2, 1, 10, 9))
    np.testing.assert_array_equal(pixels, np.asarray(want))
    config.augment.crop, config.augment.interpolation = "rrc", "nearest"
    config.augment.randaugment, config.augment.color_jitter = "", 0.0
    trained = TrainTransform(config)(decode.open_image(image), random.Random(0))
    seen = {tuple(p) for p in np.asarray(image).reshape(-1, 3).tolist()}
    assert {tuple(p) for p in trained.reshape(-1, 3).tolist()} <= seen


def stripes(width: int, height: int) -> np.ndarray:
    """Grey, different along the longer side."""
    along = np.arange(width)[None] if width > height else np.arange(height)[:, None]
    return np.broadcast_to((along * 7 % 251).astype(np.uint8), (height, width)).copy()


@pytest.mark.parametrize(("width", "height"), [(2, 60000), (60000, 2), (1, 50000), (3, 300)])
@pytest.mark.parametrize("crop", ["none", "pad", "src", "shift", "rrc"])
def test_extreme_images_take_no_memory(crop, width, height):
    """Resized whole, the first would have 15 Mpx at 24 px, and 256 x 7,680,000 at 224 px."""
    config = small_config(crop=crop)
    config.model.image_size = 224
    image = decode.open_image(stripes(width, height))
    tracemalloc.start()
    for transform in (TrainTransform(config), EvalTransform(config)):
        args = () if isinstance(transform, EvalTransform) else (random.Random(0),)
        got = transform(image, *args)
        assert got.shape == (224, 224, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize("size", [24, 40])
def test_of_an_extreme_image_the_same_part_is_made(size, monkeypatch):
    pixels = stripes(6, 400)
    want = transforms.resize_center_crop(pixels, 32, size, "bicubic")
    cropped = [
        transforms.simple_random_crop(pixels, random.Random(i), 24, 4, "bicubic") for i in range(9)
    ]
    monkeypatch.setattr(transforms, "MOST_RESIZED", 0)
    got = transforms.resize_center_crop(pixels, 32, size, "bicubic")
    assert np.abs(got.astype(int) - want).max() <= 1
    for i, one in enumerate(cropped):
        got = transforms.simple_random_crop(pixels, random.Random(i), 24, 4, "bicubic")
        assert np.abs(got.astype(int) - one).max() <= 1
