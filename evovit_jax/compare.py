"""Compares token reductions on one set of weights: accuracy against images a second and GMACs.

python -m evovit_jax.compare --model=NAME --weights=PATH --data=folder:DIR \\
    --reductions="none;evit,keep_rate=0.7;tome,r=8" --output=DIR
python -m evovit_jax.compare --model=NAME --weights=PATH --data=folder:DIR \\
    --at_gmacs=0.8,1.0 --output=DIR

The second finds the setting of every method that needs no training (or of those in --reductions)
at which an image costs so many billions of multiply-adds, and compares these with the network
without reduction.

Every batch is read once and goes through all reductions, and their speed is measured in turns on
the same images, so that neither the data nor what else the machine does favours one of them.
Writes compare.csv, compare.md and compare.png (and at_gmacs.png). Speed-ups and changes are over
the first reduction, agreement is with the answers of `none`, and needs no labels. What has been
found out is kept in the output folder: the same command goes on where it was ended.
"""

import argparse
import pathlib

import jax

from evovit_jax import tables
from evovit_jax.benchmarking import comparison, comparison_report, equal_cost, flag_checks
from evovit_jax.benchmarking.progress import Progress
from evovit_jax.errors import Parser, printable, run_command
from evovit_jax.hardware import limits
from evovit_jax.inference import evaluation, model_flags, output_folder


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = Parser(
        prog="python -m evovit_jax.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model_flags.add_flags(parser)
    parser.add_argument("--data", required=True, help="tfds:NAME[:SPLIT] or folder:PATH")
    parser.add_argument("--data_dir", default="", help="where TFDS data sets lie")
    parser.add_argument("--reductions", default="", help='as --reduction, "SPEC;SPEC;..."')
    parser.add_argument("--at_gmacs", help="costs at which to compare, such as 0.8,1.0")
    parser.add_argument("--output", required=True, help="folder for the table and the plot")
    parser.add_argument("--batch_size", type=int, help="images at once, over all devices")
    parser.add_argument("--rounds", type=int, default=5, help="speed samples of each reduction")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def check(flags: argparse.Namespace) -> tuple[pathlib.Path, tuple[float, ...]]:
    """The folder to write to, and the costs to compare at.

    Raises:
      UserError: for a value that cannot be used, before anything is loaded.
    """
    flag_checks.check_rounds(flags.rounds)
    evaluation.check_batch_size(flags.batch_size)
    targets = () if flags.at_gmacs is None else equal_cost.parse_targets(flags.at_gmacs)
    return output_folder.open_folder(flags.output), targets


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or data.
    """
    flags = parse_flags(arguments)
    limits.check()
    folder, targets = check(flags)
    with Progress() as progress:
        specs, found = model_flags.split(flags), ()
        if targets:
            specs, found = equal_cost.study(flags, specs, targets, folder, progress)
        models = [model_flags.prepare_one(flags, spec) for spec in progress.through(specs, "load")]
        rows = comparison.compare(
            models,
            flags.data,
            batch_size=flags.batch_size,
            data_dir=flags.data_dir,
            rounds=flags.rounds,
            folder=folder,
            found=found,
            progress=progress,
        )
    device = jax.devices()[0].device_kind
    seen = flags.data.rstrip("/").rsplit("/", 1)[-1]  # a table that is shown around needs no path
    title = f"{models[0].name}, {rows[0]['examples']} images of {seen}, on {device}"
    comparison_report.write(rows, title, folder)
    print(f"{printable(title)}\n\n{comparison_report.table(rows)}\n", flush=True)
    if flags.json:
        print(tables.json_line({"model": models[0].name, "device": device, "rows": rows}))
    return 0


if __name__ == "__main__":
    run_command(main)
