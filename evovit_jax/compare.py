"""Compares token reductions on one set of weights: accuracy against images a second and GMACs.

python -m evovit_jax.compare --model=NAME --weights=PATH --data=folder:DIR \\
    --reductions="none;evit,keep_rate=0.7;tome,r=8" --output=DIR

Every batch is read once and goes through all reductions, and their speed is measured in turns on
the same images, so that neither the data nor what else the machine does favours one of them.
Writes compare.csv, compare.md and compare.png. Speed-ups are over the first reduction.
"""

import argparse
import csv
import json
import pathlib
from typing import Any

import jax
from tqdm import tqdm

from evovit_jax import flops
from evovit_jax.benchmarking import timing
from evovit_jax.errors import UserError, run_command
from evovit_jax.inference import evaluation, model_flags, output_folder, scoring
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.parallel import sharding

COLUMNS = {
    "reduction": "reduction",
    "top1": "top-1 %",
    "top5": "top-5 %",
    "images_per_second": "images/s",
    "speedup": "speed-up",
    "spread": "spread",
    "gmacs": "GMACs",
}
Row = dict[str, Any]


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


def prepare_all(flags: argparse.Namespace) -> list[ReadyModel]:
    """The model with the same weights once a reduction.

    Raises:
      UserError: a bad or repeated reduction, or weights that do not fit.
    """
    if flags.reduction is not None:
        raise UserError('--reduction is for one; name them all in --reductions="SPEC;SPEC"')
    specs = [spec.strip() for spec in flags.reductions.split(";") if spec.strip()]
    if not specs or len(set(specs)) < len(specs):
        raise UserError(f"--reductions must name each reduction once, got {flags.reductions!r}")
    found = []
    for spec in tqdm(specs, desc="load", unit="reduction", disable=None):
        try:
            one = argparse.Namespace(**vars(flags) | {"reduction": spec})
            found.append(model_flags.prepare_from(one))
        except UserError as error:
            raise UserError(f"reduction {spec}: {error}") from None
    return found


def compare(
    models: list[ReadyModel],
    data: str,
    *,
    batch_size: int | None = None,
    data_dir: str = "",
    rounds: int = 5,
) -> list[Row]:
    """Accuracy, speed and GMACs of models that see images of the same size and preparation.

    Returns:
      A row for each: `reduction`, `top1`, `top5`, `examples`, `images_per_second` (the median
      round, compiled, images on the device), `spread` (the rounds' range over their median),
      `speedup` over the first row (the median of the rounds' ratios), `gmacs`.

    Raises:
      UserError: the data cannot be used, or has other classes than the models.
    """
    config = evaluation.data_config(models[0], data, batch_size=batch_size, data_dir=data_dir)
    mesh = sharding.make_mesh(config)
    batches = evaluation.open_batches(models[0], config)
    steps, sums, batch = {}, {}, None
    with jax.set_mesh(mesh):
        for model in tqdm(models, desc="compile", unit="reduction", disable=None):
            steps[model.reduction] = evaluation.compiled_step(model, config, mesh)
            sums[model.reduction] = jax.device_put(scoring.new_sums(), sharding.replicated(mesh))
        for on_host in tqdm(batches, desc="evaluate", unit="batch", disable=None):
            batch = sharding.put_batch(mesh, on_host)
            for name, step in steps.items():
                sums[name] = step(sums[name], batch)
        accuracy = {name: scoring.means(total) for name, total in sums.items()}
        times = timing.interleave(
            {
                name: timing.measure(
                    lambda name=name: jax.block_until_ready(steps[name](sums[name], batch))
                )
                for name in steps
            },
            rounds=rounds,
        )
    first = times[models[0].reduction]
    return [
        {
            "reduction": model.reduction,
            "top1": round(accuracy[model.reduction]["top1"], 3),
            "top5": round(accuracy[model.reduction]["top5"], 3),
            "examples": accuracy[model.reduction]["examples"],
            "images_per_second": round(config.eval_batch_size / times[model.reduction].median, 1),
            "spread": round(times[model.reduction].spread, 3),
            "speedup": round(timing.ratio(first, times[model.reduction]), 3),
            "gmacs": float(f"{flops.gmacs(model.model):.4g}"),
        }
        for model in models
    ]


def write_csv(rows: list[Row], path: pathlib.Path) -> None:
    """The rows, one a line, under their names."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: list[Row]) -> str:
    """The rows as a table."""
    lines = [" | ".join(COLUMNS.values()), " | ".join(["---"] + ["---:"] * (len(COLUMNS) - 1))]
    for row in rows:
        shown = {**row, "reduction": f"`{row['reduction']}`"}
        shown |= {name: f"{row[name]:.1f}" for name in ("top1", "top5", "images_per_second")}
        shown |= {"speedup": f"{row['speedup']:.2f}", "spread": f"{100 * row['spread']:.0f} %"}
        lines.append(" | ".join(str(shown[name]) for name in COLUMNS))
    return "".join(f"| {line} |\n" for line in lines)


def plot(rows: list[Row], title: str, path: pathlib.Path) -> None:
    """Top-1 against images a second and against GMACs; a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    methods = list(dict.fromkeys(row["reduction"].partition(",")[0] for row in rows))
    for number, method in enumerate(methods):
        own = [row for row in rows if row["reduction"].partition(",")[0] == method]
        color, marker = f"C{number % 10}", "osD^vP*X"[number % 8]
        for axis, quantity in zip(axes, ("images_per_second", "gmacs"), strict=True):
            points = sorted((row[quantity], row["top1"]) for row in own)
            axis.plot(*zip(*points, strict=True), color=color, marker=marker, label=method)
    axes[0].set(xlabel="images a second", ylabel="top-1, %")
    axes[1].set(xlabel="GMACs an image")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=120)


def write(rows: list[Row], title: str, folder: pathlib.Path) -> None:
    """Writes the table, as CSV and Markdown, and the plot.

    Raises:
      UserError: the folder cannot be written.
    """
    with output_folder.refusing(folder):
        write_csv(rows, folder / "compare.csv")
        (folder / "compare.md").write_text(f"{title}\n\n{markdown(rows)}")
        plot(rows, title, folder / "compare.png")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or data.
    """
    flags = parse_flags(arguments)
    folder = check(flags)
    models = prepare_all(flags)
    rows = compare(
        models,
        flags.data,
        batch_size=flags.batch_size,
        data_dir=flags.data_dir,
        rounds=flags.rounds,
    )
    device = jax.devices()[0].device_kind
    seen = flags.data.rstrip("/").rsplit("/", 1)[-1]  # a table that is shown around needs no path
    title = f"{models[0].name}, {rows[0]['examples']} images of {seen}, on {device}"
    write(rows, title, folder)
    print(f"{title}\n\n{markdown(rows)}", flush=True)
    if flags.json:
        print(json.dumps({"model": models[0].name, "device": device, "rows": rows}))
    return 0


if __name__ == "__main__":
    run_command(main)
