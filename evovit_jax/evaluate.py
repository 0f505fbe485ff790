"""Top-1 and top-5 of a model on labelled images, its speed, and its multiply-adds.

python -m evovit_jax.evaluate --model=NAME --weights=PATH --data=folder:DIR [--reduction=SPEC]
python -m evovit_jax.evaluate --weights=WORKDIR --data=tfds:digits:test --json

Images are prepared as the model's own authors do. Padding never changes a figure.
"""

import argparse

from evovit_jax import tables
from evovit_jax.errors import Parser, run_command
from evovit_jax.hardware import limits
from evovit_jax.inference import evaluation, model_flags


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = Parser(
        prog="python -m evovit_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model_flags.add_flags(parser)
    parser.add_argument("--data", required=True, help="tfds:NAME[:SPLIT] or folder:PATH")
    parser.add_argument("--data_dir", default="", help="where TFDS data sets lie")
    parser.add_argument("--batch_size", type=int, help="images at once, over all devices")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or data.
    """
    flags = parse_flags(arguments)
    limits.check()
    evaluation.check_batch_size(flags.batch_size)
    prepared = model_flags.prepare_from(flags)
    figures = evaluation.evaluate(
        prepared, flags.data, batch_size=flags.batch_size, data_dir=flags.data_dir
    )
    print(
        f"{figures['model']} ({figures['reduction']}): top-1 {figures['top1']:.2f}%, "
        f"top-5 {figures['top5']:.2f}% of {figures['examples']} images, "
        f"{figures['images_per_second']:.1f} images/s, {figures['gmacs']:.3f} GMACs"
    )
    if flags.json:
        print(tables.json_line(figures))
    return 0


if __name__ == "__main__":
    run_command(main)
