"""Finds the constants of a reduction for trained weights, by looking at some images.

python -m evovit_jax.calibrate --model=deit_small_patch16_224 --weights=FILE.safetensors \\
    --reduction=patch_slimming --data=folder:DIR --output=SLIM.safetensors

What is found depends on the method: matrices, an order of the patches, rates for a number of
multiply-adds (`--reduction=diffrate,gmacs=2.9`). The output has the weights and the constants, and
says which reduction they are for: every other command takes it as --weights, without --reduction.
"""

import argparse

from evovit_jax import tables
from evovit_jax.errors import Parser, run_command
from evovit_jax.hardware import limits
from evovit_jax.inference import calibration, evaluation, model_flags

CONSTANTS = "reducer/.*"  # what weights that were trained without a reduction lack


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = Parser(
        prog="python -m evovit_jax.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model_flags.add_flags(parser)
    parser.add_argument("--data", required=True, help="tfds:NAME[:SPLIT] or folder:PATH")
    parser.add_argument("--data_dir", default="", help="where TFDS data sets lie")
    parser.add_argument("--images", type=int, default=512, help="to look at, drawn by chance")
    parser.add_argument("--batch_size", type=int, help="images at once, over all devices")
    parser.add_argument("--output", required=True, help="a .safetensors file")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or data, or a reduction without constants.
    """
    flags = parse_flags(arguments)
    limits.check()
    evaluation.check_batch_size(flags.batch_size)
    flags.allow_missing = flags.allow_missing or CONSTANTS
    figures = calibration.calibrate(
        model_flags.prepare_from(flags),
        flags.data,
        flags.output,
        images=flags.images,
        batch_size=flags.batch_size,
        data_dir=flags.data_dir,
    )
    print(f"wrote {flags.output}: {figures['model']}, {figures['gmacs']:.3f} GMACs an image")
    print(f"--reduction={figures['reduction']}")
    if flags.json:
        print(tables.json_line(figures))
    return 0


if __name__ == "__main__":
    run_command(main)
