"""Shows which tokens each stage of a model kept, merged or skipped, over the image, as PNG.

python -m evovit_jax.visualize --model=NAME --weights=PATH IMAGE... --output=DIR
python -m evovit_jax.visualize --weights=WORKDIR --data=tfds:digits:test --output=DIR
"""

import argparse
import pathlib

from tqdm import tqdm

from evovit_jax import tables
from evovit_jax.errors import Parser, UserError, printable, run_command
from evovit_jax.hardware import limits
from evovit_jax.inference import model_flags, output_folder, visualization


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = Parser(prog="python -m evovit_jax.visualize", description=__doc__)
    model_flags.add_flags(parser)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files")
    parser.add_argument("--data", help="tfds:NAME[:SPLIT] or folder:PATH, instead of files")
    parser.add_argument("--count", type=int, default=8, help="how many images of --data")
    parser.add_argument("--data_dir", default="", help="where TFDS data sets lie")
    parser.add_argument("--output", required=True, help="folder for the PNG files, made if need be")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def check(flags: argparse.Namespace) -> pathlib.Path:
    """The folder to write to.

    Raises:
      UserError: for a value that cannot be used, before anything is loaded.
    """
    if bool(flags.images) == bool(flags.data):
        raise UserError("give image files, or --data=SPEC, one of the two")
    if flags.count < 1:
        raise UserError(f"--count={flags.count} must be at least 1")
    return output_folder.open_folder(flags.output)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or images.
    """
    flags = parse_flags(arguments)
    limits.check()
    folder = check(flags)
    prepared = model_flags.prepare_from(flags)
    visualization.check_has_tokens(prepared)
    if flags.data:
        pictures = visualization.pictures_of_data(
            flags.data, flags.count, flags.data_dir, prepared.max_image_pixels
        )
    else:
        pictures = visualization.pictures_of_files(flags.images, prepared.max_image_pixels)
    total = len(flags.images) or flags.count
    free, paths = visualization.FreeNames(folder, flags.images), []
    for name, picture in tqdm(pictures, total=total, desc="visualize", unit="image"):
        path = free.path(name)
        visualization.draw(prepared, name, picture, path)
        paths.append(str(path))
    print(f"{len(paths)} pictures in {printable(str(folder))}")
    if flags.json:
        print(tables.json_line({"model": prepared.name, "pictures": paths}))
    return 0


if __name__ == "__main__":
    run_command(main)
