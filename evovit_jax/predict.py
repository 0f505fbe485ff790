"""The five most probable classes of images, with their names.

python -m evovit_jax.predict --model=NAME --weights=PATH IMAGE...
python -m evovit_jax.predict --weights=WORKDIR IMAGE... --json
"""

import argparse

from evovit_jax import tables
from evovit_jax.errors import Parser, printable, run_command
from evovit_jax.hardware import limits
from evovit_jax.inference import model_flags, prediction


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = Parser(
        prog="python -m evovit_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model_flags.add_flags(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--class_names", help="file with a name a line (default: ImageNet's)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or images.
    """
    flags = parse_flags(arguments)
    limits.check()
    prepared = model_flags.prepare_from(flags)
    names = prepared.class_names(flags.class_names)
    predictions = prediction.predict(prepared, flags.images, names)
    for item in predictions:
        print(printable(item["image"]))
        for one in item["classes"]:
            name = printable(one["name"])
            print(f"  {100 * one['probability']:6.2f}%  {name} ({one['index']})")
    if flags.json:
        described = {"model": prepared.name, "reduction": prepared.reduction}
        print(tables.json_line({**described, "predictions": predictions}))
    return 0


if __name__ == "__main__":
    run_command(main)
