"""Does it keep the object? What token reductions keep, over a data set.

python -m evovit_jax.analyze --model=NAME --weights=PATH --data=folder:DIR \\
    --reductions="evit,keep_rate=0.7;tome,r=8" --output=DIR [--boxes=boxes.csv]

A patch counts at a block by one over the number of patches in the token that holds it: 1 if it has
its own, 1/n if n share one, 0 if it was dropped. By this weight the command compares what is kept
with what chance gives: between methods, between the first block that reduces and the last, between
weights (--weights="A;B", trainings with other seeds), with the image flipped, with the crop moved
by one patch; and it says how much of the dense network's class attention, and of the objects in
boxes.csv (columns file, x0, y0, x1, y1 in pixels of the image file), lies on kept tokens.

Writes analyze.md, analyze.csv, analyze.json and analyze.png.
"""

import argparse
import pathlib

from evovit_jax import tables
from evovit_jax.benchmarking import token_report, token_study
from evovit_jax.benchmarking.progress import Progress
from evovit_jax.errors import Parser, UserError, run_command
from evovit_jax.hardware import limits
from evovit_jax.inference import evaluation, model_flags, output_folder, visualization
from evovit_jax.inference.ready_model import ReadyModel


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = Parser(
        prog="python -m evovit_jax.analyze",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model_flags.add_flags(parser)
    parser.add_argument("--data", required=True, help="tfds:NAME[:SPLIT] or folder:PATH")
    parser.add_argument("--data_dir", default="", help="where TFDS data sets lie")
    parser.add_argument("--reductions", required=True, help='as --reduction, "SPEC;SPEC;..."')
    parser.add_argument("--boxes", help="CSV file with the columns file, x0, y0, x1, y1")
    parser.add_argument("--count", type=int, help="images, drawn by chance (default: all)")
    parser.add_argument("--batch_size", type=int, help="images at once, over all devices")
    parser.add_argument("--output", required=True, help="folder for the table and the figure")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def check(flags: argparse.Namespace) -> pathlib.Path:
    """The folder to write to.

    Raises:
      UserError: for a value that cannot be used, before anything is loaded.
    """
    evaluation.check_batch_size(flags.batch_size)
    if flags.count is not None and flags.count < 1:
        raise UserError(f"--count={flags.count} must be at least 1")
    return output_folder.open_folder(flags.output)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights, data or boxes.
    """
    flags = parse_flags(arguments)
    limits.check()
    folder = check(flags)
    with Progress() as progress:
        models: list[list[ReadyModel]] = [
            model_flags.prepare_weights(flags, spec)
            for spec in progress.through(model_flags.split(flags), "load")
        ]
        visualization.check_has_tokens(models[0][0])
        study = token_study.study(
            models,
            flags.data,
            batch_size=flags.batch_size,
            count=flags.count,
            boxes=flags.boxes,
            data_dir=flags.data_dir,
            progress=progress,
        )
    report = token_report.report_of(study, flags.data)
    token_report.write(report, folder)
    print(f"{token_report.text_of(report)}\n", flush=True)
    if flags.json:
        print(tables.json_line(report))
    return 0


if __name__ == "__main__":
    run_command(main)
