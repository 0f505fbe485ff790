"""Shows which tokens each block of a model kept, merged or dropped, over the image.

python -m evovit_jax.visualize --model=NAME --weights=PATH IMAGE... --output=DIR
python -m evovit_jax.visualize --weights=WORKDIR --data=tfds:digits:test --grid=FILE.png
python -m evovit_jax.visualize --model=NAME --weights=PATH IMAGE... \\
    --reductions="evit,keep_rate=0.7;tome,r=8" --html=FILE.html

--output draws a picture of each image, --grid one of all, a row of blocks each. --html writes a
page that opens in any browser without a network: the blocks behind a slider, all reductions and the
network without one beside each other, what each answers, and what the class token looks at.
"""

import argparse

from tqdm import tqdm

from evovit_jax import tables
from evovit_jax.errors import Parser, UserError, printable, run_command
from evovit_jax.hardware import limits
from evovit_jax.inference import model_flags, output_folder, visualization
from evovit_jax.inference.token_views import Places, TokenViews, check_counts, networks


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = Parser(
        prog="python -m evovit_jax.visualize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model_flags.add_flags(parser)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files")
    parser.add_argument("--reductions", help='several, as --reduction: "SPEC;SPEC;..."')
    parser.add_argument("--data", help="tfds:NAME[:SPLIT] or folder:PATH, instead of files")
    parser.add_argument("--count", type=int, default=8, help="how many images of --data")
    parser.add_argument("--data_dir", default="", help="where TFDS data sets lie")
    parser.add_argument("--class_names", help="file with a name a line (default: ImageNet's)")
    parser.add_argument("--output", help="folder for a PNG file of each image, made if need be")
    parser.add_argument("--grid", help="PNG file for one picture of all images")
    parser.add_argument("--html", help="file for the page")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def check(flags: argparse.Namespace) -> Places:
    """Where to write to.

    Raises:
      UserError: for a value that cannot be used, before anything is loaded.
    """
    if bool(flags.images) == bool(flags.data):
        raise UserError("give image files, or --data=SPEC, one of the two")
    if flags.count < 1:
        raise UserError(f"--count={flags.count} must be at least 1")
    if (flags.output, flags.grid, flags.html) == (None, None, None):
        raise UserError("say what to write: --output=DIR, --grid=FILE.png or --html=FILE.html")
    check_counts(flags)
    files = {}
    for name, flag, ending in (("grid", "grid", ".png"), ("page", "html", ".html")):
        file = getattr(flags, flag)
        if file is not None:
            files[name] = visualization.free_file(file, f"--{flag}", ending, flags.images)
    folder = None if flags.output is None else output_folder.open_folder(flags.output)
    return Places(folder, **files)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or images.
    """
    flags = parse_flags(arguments)
    limits.check()
    places = check(flags)
    asked, dense = networks(flags)
    class_names = asked[0].class_names(flags.class_names) if asked[0].num_classes else None
    if flags.data:
        given = (flags.data, flags.count, flags.data_dir, asked[0].max_image_pixels)
        pictures = visualization.pictures_of_data(*given)
    else:
        pictures = visualization.pictures_of_files(flags.images, asked[0].max_image_pixels)
    views = TokenViews(asked, dense, places, kept=flags.images)
    total = len(flags.images) or flags.count
    for name, picture in tqdm(pictures, total=total, desc="visualize", unit="image"):
        views.add(name, picture)
    written = {"model": asked[0].name, "pictures": views.pictures} | views.finish(class_names)
    if places.folder:
        print(f"{len(views.pictures)} pictures in {printable(str(places.folder))}")
    for what in ("grid", "page"):
        if what in written:
            print(f"the {what} is {printable(written[what])}")
    if flags.json:
        print(tables.json_line(written))
    return 0


if __name__ == "__main__":
    run_command(main)
