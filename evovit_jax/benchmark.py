"""Throughput, latency, memory and cost of models, interleaved in one run.

python -m evovit_jax.benchmark --models="A;B+evit,keep_rate=0.7" [--batch_sizes=1,16]
python -m evovit_jax.benchmark --models=A --mode=train --peers=timm --json --output=DIR
python -m evovit_jax.benchmark --models=A --target=v5e[,v6e,h100] [--mode=train] --batch_sizes=64
python -m evovit_jax.benchmark --mode=data --data=folder:DIR [--peers=tf,torch]

Models, batch sizes and the matmuls whose speed is the peak take turns, so that whatever else runs
hits all alike. `speedup` is over the first model at the same batch size, median of the rounds.
`--target` prints estimates for accelerators not here: a TPU's compiler's, a GPU's data sheet's.
"""

import argparse
from collections.abc import Sequence

from evovit_jax import tables
from evovit_jax.benchmarking import compiler_rows, data_pipelines, flag_checks, own_models, rows
from evovit_jax.benchmarking import report as benchmark_report
from evovit_jax.errors import Parser, run_command
from evovit_jax.hardware import cpu, limits
from evovit_jax.inference import output_folder


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = Parser(
        prog="python -m evovit_jax.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", default="", help="NAME or NAME+REDUCTION, semicolons between them")
    add("--batch_sizes", default="1,16", help="images at once, commas between them")
    modes = (*own_models.MODES, "gradient", "data")
    add("--mode", default="inference", choices=modes, help="what is timed; data: the pipeline")
    add("--target", default="", help="accelerators that are not here, v5e,h100: estimates")
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, help="float32 by default, with --target bfloat16")
    add("--image_size", type=int, help="pixels; those of each model by default")
    add("--chunk", type=int, help="images computed at once in inference; 0 for the whole batch")
    add("--remat", default="none", help="what a training step recomputes: none, dots or full")
    add("--peers", default="", help="timm; with --mode=data: tf, torch")
    add("--rounds", type=int, default=5, help="samples of each, in turns")
    add("--seconds", type=float, default=2.0, help="of one sample, about")
    add("--data", default="", help="folder:DIR or tfds:NAME, with --mode=data")
    add("--data_dir", default="", help="where TFDS data sets lie")
    add("--output", default="", help="folder for benchmark.json, benchmark.md and benchmark.png")
    add("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its status is 1 where a compiler gave a program up.

    Raises:
      UserError: bad flags, models or data, or an output that cannot be written.
    """
    flags = parse_flags(arguments)
    limits.check()
    batch_sizes, chosen = flag_checks.check(flags)
    folder = output_folder.open_folder(flags.output) if flags.output else None
    shared = {name: vars(flags)[name] for name in ("mode", "image_size", "chunk", "remat")}
    shared["batch_sizes"] = batch_sizes
    if flags.target:
        models = own_models.parse_models(flags.models)
        targets, dtype = flags.target.split(","), flags.dtype or "bfloat16"
        report = compiler_rows.run(models, targets=targets, dtype=dtype, **shared)
        table = compiler_rows.table(report)
    elif flags.mode == "data":
        report, table = data_pipelines.report(
            flags.data,
            peers=chosen,
            batch_size=batch_sizes[-1],
            image_size=flags.image_size or 224,
            rounds=flags.rounds,
            seconds=flags.seconds,
            data_dir=flags.data_dir,
        )
    else:
        cpu.keep_memory()  # as the training's command does
        report = rows.run(
            own_models.parse_models(flags.models),
            dtype=flags.dtype or "float32",
            timm=bool(chosen),
            rounds=flags.rounds,
            seconds=flags.seconds,
            **shared,
        )
        table = benchmark_report.table(report)
    print(table)
    if folder:
        benchmark_report.write(report, table, folder)
        print(f"written to {folder}")
    if flags.json:
        print(tables.json_line(report), flush=True)
    return 1 if report.get("failed") else 0


if __name__ == "__main__":
    run_command(main)
