"""Compares token reductions on one set of weights: accuracy against images a second and GMACs.

python -m evovit_jax.compare --model=NAME --weights=PATH --data=folder:DIR \\
    --reductions="none;evit,keep_rate=0.7;tome,r=8" --output=DIR

Every batch is read once and goes through all reductions, and their speed is measured in turns on
the same images, so that neither the data nor what else the machine does favours one of them.
Writes compare.csv, compare.md and compare.png. Speed-ups are over the first reduction.
"""

import argparse
import pathlib

import jax

from evovit_jax import tables
from evovit_jax.benchmarking import comparison, comparison_report
from evovit_jax.errors import UserError, printable, run_command
from evovit_jax.hardware import limits
from evovit_jax.inference import evaluation, model_flags, output_folder


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m evovit_jax.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model_flags.add_flags(parser)
    parser.add_argument("--data", required=True, help="tfds:NAME[:SPLIT] or folder:PATH")
    parser.add_argument("--data_dir", default="", help="where TFDS data sets lie")
    parser.add_argument("--reductions", required=True, help='as --reduction, "SPEC;SPEC;..."')
    parser.add_argument("--output", required=True, help="folder for the table and the plot")
    parser.add_argument("--batch_size", type=int, help="images at once, over all devices")
    parser.add_argument("--rounds", type=int, default=5, help="speed samples of each reduction")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def check(flags: argparse.Namespace) -> pathlib.Path:
    """The folder to write to.

    Raises:
      UserError: for a value that cannot be used, before anything is loaded.
    """
    if flags.rounds < 1:
        raise UserError(f"--rounds={flags.rounds} must be at least 1")
    evaluation.check_batch_size(flags.batch_size)
    return output_folder.open_folder(flags.output)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or data.
    """
    flags = parse_flags(arguments)
    limits.check()
    folder = check(flags)
    models = model_flags.prepare_each(flags, flags.reductions)
    rows = comparison.compare(
        models,
        flags.data,
        batch_size=flags.batch_size,
        data_dir=flags.data_dir,
        rounds=flags.rounds,
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
