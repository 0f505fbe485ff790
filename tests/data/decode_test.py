"""Decoding: Pillow's pixels from every format, less work where less is needed, clear refusals."""

import errno
import io
import json
import subprocess
import sys

import image_fuzz
import numpy as np
import pytest
from PIL import Image

from evovit_jax.data import decode
from evovit_jax.data.resize import resize

BICUBIC = Image.Resampling.BICUBIC


def photograph(width: int = 1600, height: int = 1200) -> Image.Image:
    rng = np.random.default_rng(0)
    tiny = Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8))
    return tiny.resize((width, height), BICUBIC)


def encoded(image: Image.Image, kind: str = "jpeg", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp", "gif"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_pixels_are_pillows(kind, mode):
    image = photograph(61, 47).convert(mode)
    if mode == "CMYK" and kind != "jpeg":
        image = image.convert("RGB")
    data = encoded(image, kind)
    picture = decode.open_image(data)
    assert picture.size == (61, 47)
    whole = picture.whole()
    pillow = Image.open(io.BytesIO(data))
    want = np.asarray(pillow if pillow.mode == "L" else pillow.convert("RGB"))
    assert whole.shape == want.shape
    assert (whole == want).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_part_is_a_crop_and_a_resize(mode):
    image = photograph(100, 80).convert(mode)
    data = encoded(image)
    box = (13, 7, 90, 61)
    want = resize(np.asarray(Image.open(io.BytesIO(data)).crop(box)), 50, "bicubic")
    for stored in (data, np.asarray(Image.open(io.BytesIO(data)))):
        got = decode.open_image(stored).part(box, 50, "bicubic")
        assert (np.asarray(got) == np.asarray(want)).all()


@pytest.mark.parametrize(("size", "factor"), [(601, 1), (600, 2), (301, 2), (300, 4), (100, 8)])
def test_a_jpeg_is_decoded_as_small_as_the_part_allows(size, factor, monkeypatch):
    shapes = []
    real = decode.simplejpeg.decode_jpeg

    def record(*args, **options):
        pixels = real(*args, **options)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", record)
    data = encoded(photograph(), quality=95)
    box = (100, 0, 1300, 1200)
    got = decode.open_image(data).part(box, size, "bicubic")
    assert shapes == [(1200 // factor, 1600 // factor, 3)]
    want = photograph().crop(box).resize((size, size), BICUBIC)
    difference = np.abs(np.asarray(got, int) - np.asarray(want, int))
    assert difference.mean() < 1.0
    assert difference.max() < 12


def test_a_shrunk_jpeg_keeps_the_place_of_its_box():
    # A box that is no multiple of the factor, in an image that is none either.
    image = photograph(1003, 805)
    box = (101, 55, 802, 756)
    got = decode.open_image(encoded(image, quality=95)).part(box, 96, "bicubic")
    want = np.asarray(image.crop(box).resize((96, 96), BICUBIC), int)
    errors = [
        np.abs(np.roll(np.asarray(got, int), shift, axis) - want)[4:-4, 4:-4].mean()
        for axis in (0, 1)
        for shift in (-1, 0, 1)
    ]
    assert errors[1] == errors[4] == min(errors)
    assert errors[1] < min(errors[i] for i in (0, 2, 3, 5)) / 3


@pytest.mark.parametrize(
    "data", [b"", b"no image", b"\xff\xd8", b"\xff\xd8\xff no", b"\x89PNG\r\n\x1a\n broken"]
)
def test_bytes_that_are_no_image(data):
    with pytest.raises(decode.UnreadableImage):
        decode.open_image(data).whole()


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_truncated_image(kind):
    data = encoded(photograph(200, 150), kind)
    picture = decode.open_image(data[: len(data) // 2])
    with pytest.raises(decode.UnreadableImage):
        picture.whole()
    with pytest.raises(decode.UnreadableImage):
        picture.part((0, 0, 100, 100), 32, "bicubic")


def test_transparency_is_dropped_without_a_warning():
    image = Image.new("P", (8, 8), 3)
    image.info["transparency"] = b"\x00" * 4
    assert decode.open_image(image).whole().shape == (8, 8, 3)


class Counting:
    """Three images of a given side, counting how often each is read."""

    name, num_classes, class_names, has_names = "counting", 1, ("x",), False

    def __init__(self, side: int):
        self.data = encoded(photograph(side, side))
        self.reads = [0, 0, 0]

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.reads[index] += 1
        return {"image": self.data, "label": index}

    def describe(self, index):
        return str(index)


@pytest.mark.parametrize(("side", "reads"), [(64, [1, 1, 0]), (65, [2, 1, 0])])
def test_only_small_images_are_kept(side, reads):
    source = Counting(side)
    images = decode.SmallImages(source)
    seen = [images.get(i) for i in (0, 1, 0)]
    assert source.reads == reads
    assert [label for _, label in seen] == [0, 1, 0]
    first, second = (np.asarray(seen[i][0].whole()) for i in (0, 2))
    assert (first == second).all()
    parts = [np.asarray(seen[i][0].part((3, 3, 40, 40), 16, "bicubic")) for i in (0, 2)]
    assert (parts[0] == parts[1]).all()


def test_small_images_of_a_large_set_are_not_kept(monkeypatch):
    monkeypatch.setattr(decode, "SMALL_BYTES", 3 * 64 * 64 * 3 - 1)
    source = Counting(64)
    images = decode.SmallImages(source)
    images.get(0)
    images.get(0)
    assert source.reads == [2, 0, 0]


def test_of_16_bits_the_upper_8_count():
    ramp = np.arange(0, 65536, 16, np.uint16).reshape(64, 64)
    picture = decode.open_image(encoded(Image.fromarray(ramp), "png"))
    np.testing.assert_array_equal(picture.whole(), (ramp >> 8).astype(np.uint8))
    assert picture.part((0, 0, 64, 64), 8, "bicubic").shape[:2] == (8, 8)


def test_32_bits_are_refused():
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "tiff")
    with pytest.raises(decode.UnreadableImage, match="range of its values is unknown"):
        decode.open_image(data).whole()


@pytest.mark.parametrize(
    ("number", "raised"),
    [(errno.ENOENT, decode.UnreadableImage), (errno.EMFILE, OSError), (errno.ESTALE, OSError)],
)
def test_a_system_that_reads_no_file_now_is_no_unreadable_image(number, raised):
    class Source:
        name, num_classes, class_names, has_names = "one", 1, ("a",), True

        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise OSError(number, "as the system says")

        def describe(self, index):
            return "a"

    with pytest.raises(raised, match="as the system says"):
        decode.SmallImages(Source()).get(0)


def jpeg_that_says(width: int, height: int) -> bytes:
    """A JPEG whose header says another size than it has."""
    data = encoded(photograph(16, 16))
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


@pytest.mark.parametrize("cmyk", [False, True])
def test_a_header_is_refused_before_anything_is_decoded(cmyk, monkeypatch):
    data = jpeg_that_says(65500, 65500)
    if cmyk:  # which Pillow decodes
        data = encoded(photograph(16, 16).convert("CMYK"))
        at = data.index(b"\xff\xc0") + 5
        data = data[:at] + b"\xff\xdc" * 2 + data[at + 4 :]
    with pytest.raises(decode.UnreadableImage, match=r"65500 x 65500|exceeds limit"):
        decode.open_image(data)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp", "gif", "ppm", "tiff"])
def test_every_format_is_bounded(kind):
    data = encoded(photograph(50, 40), kind)
    assert decode.open_image(data, 2000).whole().shape == (40, 50, 3)
    with pytest.raises(decode.UnreadableImage, match="50 x 40 pixels, more than max_image_pixels"):
        decode.open_image(data, 1999)
    with pytest.raises(decode.UnreadableImage, match="more than max_image_pixels"):
        decode.open_image(np.zeros((40, 50), np.uint8), 1999)


def test_a_jpeg_of_a_hundred_thousand_passes_is_refused():
    data = encoded(photograph(4000, 3000), progressive=True)
    assert decode.open_image(data).size == (4000, 3000)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    with pytest.raises(decode.UnreadableImage, match="passes"):
        decode.open_image(data[:-2] + scan[:12] * 100_000 + data[-2:])


def test_too_little_memory_is_an_unreadable_image(monkeypatch):
    def refuse(*args, **options):
        raise MemoryError

    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", refuse)
    picture = decode.open_image(encoded(photograph(20, 20)))
    for read in (picture.whole, lambda: picture.part((0, 0, 9, 9), 9, "bicubic")):
        with pytest.raises(decode.UnreadableImage, match="MemoryError"):
            read()


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
showpage
"""


@pytest.mark.parametrize("kind", ["eps", "tga", "ico", "pdf", "sgi"])
def test_only_formats_of_photographs_are_decoded(kind, tmp_path, monkeypatch):
    """Pillow would start Ghostscript on PostScript."""
    marker = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    data = POSTSCRIPT if kind == "eps" else encoded(photograph(16, 16), kind)
    with pytest.raises(decode.UnreadableImage, match="not an image file"):
        decode.open_image(data).whole()
    assert not marker.exists()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 5), np.uint8),
        np.zeros((4, 5), np.float32),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_images(array):
    with pytest.raises(decode.UnreadableImage):
        decode.open_image(array)


def test_arrays_as_tfds_decodes_them():
    for channels, shape in ((1, (4, 5)), (2, (4, 5)), (3, (4, 5, 3)), (4, (4, 5, 3))):
        pixels = np.full((4, 5, channels), 0x1234, np.uint16)
        whole = decode.open_image(pixels).whole()
        assert whole.shape == shape
        assert (whole == 0x12).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_some_rows_at_a_time_make_the_same_pixels(mode, monkeypatch):
    image = photograph(61, 47)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    image = image.convert(mode) if mode != "I;16" else image
    data = encoded(image, "jpeg" if mode == "CMYK" else "png")
    transparent = {"transparency": 3} if mode == "P" else {}
    data = encoded(image, "png", **transparent) if transparent else data
    whole = decode.open_image(data).whole()
    monkeypatch.setattr(decode, "STRIP", 61 * 7)
    assert (decode.open_image(data).whole() == whole).all()
    assert whole.shape == ((47, 61) if mode in ("L", "I;16") else (47, 61, 3))


def test_a_side_longer_than_any_camera_makes_is_refused():
    with pytest.raises(decode.UnreadableImage, match="1 x 65536 pixels, more than 65535 a side"):
        decode.open_image(np.zeros((65536, 1), np.uint8))


def test_mutated_images_are_decoded_or_refused():
    found = image_fuzz.run(40, seed=1, specials=False)
    assert found["failed"] == []


@pytest.mark.slow
def test_hostile_and_mutated_images_take_little_memory():
    command = [sys.executable, image_fuzz.__file__, "--cases=1000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == []
    assert found["largest_mb"][0] < 500
