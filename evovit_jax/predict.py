"""The five most probable classes of images, with their names.

python -m evovit_jax.predict --model=NAME --weights=PATH IMAGE...
python -m evovit_jax.predict --weights=WORKDIR IMAGE... --json
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx

from evovit_jax.data.decode import UnreadableImage, open_image
from evovit_jax.errors import UserError, run_command
from evovit_jax.inference import model_flags
from evovit_jax.inference.class_names import class_names
from evovit_jax.inference.ready_model import ReadyModel

TOP = 5
BATCH = 8


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m evovit_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model_flags.add_flags(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--class_names", help="file with a name a line (default: ImageNet's)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def predict(prepared: ReadyModel, files: list[str], names: list[str]) -> list[dict[str, Any]]:
    """The most probable classes of image files.

    Returns:
      For each file `image` and `classes`, a list of `index`, `name` and `probability`, the most
      probable first.

    Raises:
      UserError: an image cannot be read.
    """
    graphdef, state = nnx.split(prepared.model)

    @jax.jit
    def probabilities(state: Any, images: jax.Array) -> jax.Array:
        return jax.nn.softmax(nnx.merge(graphdef, state)(images)[0], axis=-1)

    found = []
    for first in range(0, len(files), BATCH):
        part = files[first : first + BATCH]
        pixels = np.stack([read(prepared, file) for file in part])
        # One size of batch, so that one program is compiled.
        filled = np.zeros((min(BATCH, len(files)), *pixels.shape[1:]), np.uint8)
        filled[: len(part)] = pixels
        scores = np.asarray(probabilities(state, prepared.normalise(filled)))
        for file, row in zip(part, scores, strict=False):
            order = np.argsort(-row, stable=True)[:TOP]
            classes = [
                {"index": int(i), "name": names[i], "probability": round(float(row[i]), 6)}
                for i in order
            ]
            found.append({"image": file, "classes": classes})
    return found


def read(prepared: ReadyModel, file: str) -> np.ndarray:
    """The pixels of an image file that the model sees, uint8 `[s, s, 3]`.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return prepared.crop(open_image(pathlib.Path(file).expanduser().read_bytes()))
    except (OSError, RuntimeError, UnreadableImage) as error:  # no home directory: RuntimeError
        raise UserError(f"cannot read image {file}: {error}") from None


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or images.
    """
    flags = parse_flags(arguments)
    prepared = model_flags.prepare_from(flags)
    names = class_names(
        prepared.model.config.num_classes, file=flags.class_names, weights=flags.weights
    )
    found = predict(prepared, flags.images, names)
    for item in found:
        print(item["image"])
        for one in item["classes"]:
            print(f"  {100 * one['probability']:6.2f}%  {one['name']} ({one['index']})")
    if flags.json:
        described = {"model": prepared.name, "reduction": prepared.reduction}
        print(json.dumps({**described, "predictions": found}))
    return 0


if __name__ == "__main__":
    run_command(main)
