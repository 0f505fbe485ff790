"""Makes images whose object is at a known place, for `python -m evovit_jax.analyze --boxes=...`.

    python experiments/pasted_objects.py --data=folder:DIR/photos --output=DIR/pasted
    python -m evovit_jax.analyze --model=deit_tiny_patch16_224 \
        --weights=DIR/deit_tiny_patch16_224.safetensors --data=folder:DIR/pasted \
        --boxes=DIR/pasted/boxes.csv --reductions="evit,keep_rate=0.7;heuristic,keep_rate=0.7" \
        --output=DIR/out

Each image is a photograph of the data, made small and pasted onto another one that is blurred. The
box is where it was pasted: one of `--parts` x `--parts` squares that tile what a model sees, drawn
by chance, so that no place is more likely than another. That is no photograph of an object, and
easier than one: what is sharp stands out. It tells whether a selection finds that, wherever it is.
"""

import argparse
import csv
import pathlib

import numpy as np
from PIL import Image, ImageFilter

from evovit_jax.data.decode import open_image
from evovit_jax.data.source import Drawn, open_source
from evovit_jax.data.transforms import evaluation_pixels

SIDE, SEEN = 256, 224  # pixels of an image, and of its centre, in which the object lies
BLUR = 8  # radius in pixels
COLUMNS = ("file", "x0", "y0", "x1", "y1")


def square(photo: dict, side: int) -> Image.Image:
    """The centre of a photograph, `side` pixels."""
    return Image.fromarray(evaluation_pixels(open_image(photo["image"]), side, side, "bicubic"))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder:PATH")
    parser.add_argument("--output", required=True, help="folder for the images and boxes.csv")
    parser.add_argument("--count", type=int, default=500, help="images")
    parser.add_argument("--parts", type=int, default=2, help="objects that a side would hold")
    flags = parser.parse_args()
    photos = Drawn(open_source(flags.data, labels_needed=False), flags.count)
    folder, rng, side = pathlib.Path(flags.output), np.random.default_rng(0), SEEN // flags.parts
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(len(photos)):
        image = square(photos[i - 1], SIDE).filter(ImageFilter.GaussianBlur(BLUR))
        x, y = ((SIDE - SEEN) // 2 + side * int(part) for part in rng.integers(flags.parts, size=2))
        image.paste(square(photos[i], side), (x, y))
        image.save(folder / f"{i:04}.png")
        rows.append((f"{i:04}.png", x, y, x + side, y + side))
    with (folder / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    print(f"{len(rows)} images and boxes.csv in {folder}")


if __name__ == "__main__":
    main()
