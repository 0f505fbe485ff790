"""Writes a network with its weights as one file that runs without this library.

python -m evovit_jax.export --model=NAME --weights=PATH --output=FILE
python -m evovit_jax.export --model=NAME --weights=PATH --reduction=SPEC --format=onnx \\
    --input=uint8 --data=folder:DIR --output=FILE

The reduction is inside, and the number of images at a time is free. What was written is run beside
the network on 50 images, of --data where that is given, and kept only if their logits agree.
FILE.json beside it says what goes in, what comes out, and how images are prepared.
"""

import argparse

from evovit_jax import tables
from evovit_jax.errors import Parser, printable, run_command
from evovit_jax.exporting import checked, formats
from evovit_jax.hardware import limits
from evovit_jax.inference import model_flags


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = Parser(
        prog="python -m evovit_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model_flags.add_flags(parser)
    parser.add_argument("--format", choices=formats.NAMES, default=formats.NAMES[0])
    parser.add_argument(
        "--input",
        choices=checked.INPUTS,
        default=checked.INPUTS[0],
        help="what the file takes: normalised images, or pixels, which it normalises itself",
    )
    parser.add_argument("--output", required=True, help="what to write; OUTPUT.json lies beside it")
    parser.add_argument("--data", help="whose images to compare: tfds:NAME[:SPLIT] or folder:PATH")
    parser.add_argument("--data_dir", default="", help="where TFDS data sets lie")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest difference of a logit"
    )
    parser.add_argument("--class_names", help="file with a name a line (default: ImageNet's)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or data; the format lacks an operator or its library is not
        installed; the exported network computes something else.
    """
    flags = parse_flags(arguments)
    limits.check()
    place = checked.check_place(flags.output, flags.tolerance)
    file_format = formats.find(flags.format)
    prepared = model_flags.prepare_from(flags)
    about = checked.export(
        prepared,
        file_format,
        place,
        dtype=flags.input,
        data=flags.data,
        data_dir=flags.data_dir,
        tolerance=flags.tolerance,
        class_names=flags.class_names,
    )
    check = about["check"]
    print(
        f"wrote {flags.output}, {about['bytes'] / 1e6:.1f} MB, and {flags.output}.json: "
        f"the logits of {check['images']} images ({printable(check['of'])}) differ by at most "
        f"{check['largest_difference']:.1e}"
    )
    if ties := len(check["undecided"]):
        print(f"but for {ties} with tied tokens, of which the network itself may choose either")
    if flags.json:
        print(tables.json_line(about))
    return 0


if __name__ == "__main__":
    run_command(main)
