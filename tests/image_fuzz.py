"""Hostile and mutated image files, each through the transforms: pixels, or an unreadable image.

    python tests/image_fuzz.py --cases=2000 --seed=0

Prints one line of JSON: how many of each kind were decoded, how many refused; the longest took how
many seconds; how many MB of memory the largest took; what else happened, with its traceback. In a
process of its own, with limits: 60 s a file, and 1 GB of address space for all.
"""

import collections
import io
import random
import struct
import time
import traceback
import zlib

import numpy as np
from mutations import TooLong, command, limited, mutated, peak_mb, reset_peak
from PIL import Image

from evovit_jax.config import get_config
from evovit_jax.data.augment import EvalTransform, TrainTransform
from evovit_jax.data.decode import UnreadableImage, open_image
from evovit_jax.data.transforms import CROPS

SECONDS, SPACE = 60, 1 << 30
FORMATS = ("jpeg", "png", "webp", "bmp", "gif", "ppm", "tiff")
MODES = {"jpeg": ("RGB", "L", "CMYK"), "ppm": ("RGB", "L"), "bmp": ("RGB", "L", "P")}


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG file; `rows` before they are packed."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_that_says(width: int, height: int, **options) -> bytes:
    """A JPEG whose header says another size than it has."""
    data = encoded(Image.new("RGB", (16, 16)), "jpeg", **options)
    at = data.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def special() -> dict[str, bytes]:
    """What was made to take all memory, or all time, by what it is."""
    progressive = encoded(Image.new("RGB", (4000, 3000)), "jpeg", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    sides = [(2, 60_000), (60_000, 2), (1, 65_000), (7000, 7000), (65_000, 700)]
    bmp = (54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0)
    grey = {f"jpeg {w} x {h}": encoded(Image.new("L", (w, h)), "jpeg") for w, h in sides}
    return {
        **grey,
        "jpeg RGB 7000 x 7000": encoded(Image.new("RGB", (7000, 7000)), "jpeg"),
        "jpeg CMYK 7000 x 7000": encoded(Image.new("CMYK", (7000, 7000)), "jpeg"),
        "png RGBA 7000 x 7000": encoded(Image.new("RGBA", (7000, 7000)), "png"),
        "png 1 x 10,000,000": png(1, 10_000_000, bytes(20_000_000)),
        "png 65,535 x 760": png(65_535, 760, bytes(65_536 * 760)),
        "png of a bit": encoded(Image.new("1", (7000, 7000)), "png"),
        "tiff RGBA": encoded(Image.new("RGBA", (7000, 7000)), "tiff"),
        "webp 4000 x 4000": encoded(Image.new("RGBA", (4000, 4000)), "webp"),
        "png says 2^31 - 1 squared": png(2**31 - 1, 2**31 - 1, b""),
        "png says 7000 x 7000": png(7000, 7000, b""),
        "jpeg says 65,500 squared": jpeg_that_says(65_500, 65_500),
        "jpeg says 7000 x 7000": jpeg_that_says(7000, 7000),
        "progressive says 65,500 squared": jpeg_that_says(65_500, 65_500, progressive=True),
        "progressive says 7000 x 7000": jpeg_that_says(7000, 7000, progressive=True),
        "100,000 passes": progressive[:-2] + last[:12] * 100_000 + progressive[-2:],
        "gif says 65,535 squared": b"GIF89a" + b"\xff" * 4 + bytes(30),
        "ppm says 10^9 squared": b"P6 1000000000 1000000000 255\n",
        "ppm says 7000 squared": b"P6 7000 7000 255\n",
        "bmp says 2^31 - 1 squared": b"BM" + bytes(8) + struct.pack("<IIiiHHI", *bmp) + bytes(20),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
        "nothing": b"",
    }


def transforms(size: int) -> list:
    """The evaluation transform and one of each crop, with RandAugment and 3-Augment."""
    made = []
    for number, crop in enumerate(CROPS):
        config = get_config()
        config.model.image_size, config.augment.crop = size, crop
        if number % 2:
            config.augment.update({"randaugment": "", "three_augment": True})
        made.append(TrainTransform(config))
    return [EvalTransform(config), *made]


def look(data: bytes, through: list, rng: random.Random) -> str:
    """Opens and transforms an image anew each time; what came of it."""
    for transform in through:
        is_training = isinstance(transform, TrainTransform)
        try:
            pixels = transform(open_image(data), *([random.Random(rng.random())] * is_training))
        except UnreadableImage as error:
            if "MemoryError" in str(error):
                raise
            return "refused"
        assert pixels.shape == (transform.size, transform.size, 3)
    return "decoded"


def mutations(cases: int, rng: random.Random):
    """Kind and bytes of so many changed files."""
    drawn = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    image = Image.fromarray(drawn).resize((61, 47))
    whole = {
        f"{kind} {mode}": encoded(image.convert(mode), kind)
        for kind in FORMATS
        for mode in MODES.get(kind, ("RGB", "RGBA", "L", "P"))
    }
    for _ in range(cases):
        kind = rng.choice(list(whole))
        yield kind.split()[0], mutated(whole[kind], rng)


def run(cases: int, seed: int, *, specials: bool = True) -> dict:
    """Looks at all special and so many changed files; returns the counts."""
    rng, counts = random.Random(seed), collections.defaultdict(lambda: {"decoded": 0, "refused": 0})
    failed: list[str] = []
    slowest, largest = (0.0, ""), (0, "")
    large, small = transforms(224), transforms(32)
    files = [("special", name, data) for name, data in (special() if specials else {}).items()]
    files += [(kind, f"{kind} {i}", data) for i, (kind, data) in enumerate(mutations(cases, rng))]
    for kind, name, data in files:
        start, held = time.perf_counter(), reset_peak()
        try:
            with limited(SECONDS):
                counts[kind][look(data, large if kind == "special" else small, rng)] += 1
        except (Exception, TooLong) as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
            traceback.print_exc()
        slowest = max(slowest, (round(time.perf_counter() - start, 2), name))
        largest = max(largest, (peak_mb() - held, name))
    result = {"cases": len(files), "slowest_s": slowest, "largest_mb": largest}
    return result | counts | {"failed": failed}


if __name__ == "__main__":
    command(run, __doc__, cases=2000, space=SPACE)
