"""The tables of docs/results.md, and their logs, from the trainings that an experiment left.

    python experiments/results.py OUTPUT [--logs=docs/logs] [--prefix=finetune] [--picture=FILE]

OUTPUT is the folder of digits.sh, finetune_cifar10.sh or scratch_cifar10.sh. Prints a Markdown row
for each run that has ended, and writes its log: a line of JSON that says what was run on what, then
one for each evaluation. Times are those of the training steps alone. The picture has the accuracy
of every run against its training time and against the multiply-adds of an image; `--leave_out NAME`
keeps one whose accuracy is far from the others' from squeezing them together.
"""

import argparse
import csv
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from evovit_jax import tables
from evovit_jax.benchmarking import comparison_report

COLUMNS = ("Name", "Seed", "Epochs", "Time", "GMACs", "Before", "Ours", "Log")
VERSIONS = ("evovit_jax", "jax", "flax", "optax", "numpy")


def lines_of(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def processor() -> str:
    """The processor's name, and how many of its cores there are."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}"


def training_seconds(metrics: list[dict[str, Any]], batch_size: int) -> float | None:
    """Seconds of all training steps, by the images a second of each interval of the metrics.

    The first interval has no rate, since it holds the compilation: its steps count as the others.
    None where there is no other.
    """
    timed = [record for record in metrics if "images_per_second" in record]
    steps = [record["step"] for record in metrics if "loss" in record]
    lengths = {step: step - before for before, step in zip([0, *steps], steps, strict=False)}
    rated = sum(lengths[record["step"]] for record in timed)
    if not rated:
        return None
    seconds = sum(
        lengths[record["step"]] * batch_size / record["images_per_second"] for record in timed
    )
    return seconds * steps[-1] / rated


def in_words(seconds: float) -> str:
    """A duration as a table shows it."""
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def accuracy(folder: pathlib.Path, reduction: str) -> str:
    """Top-1 in percent with its interval, of a reduction in a folder of `compare`; "" for none."""
    path = folder / "compare.csv"
    if path.exists():
        for row in csv.DictReader(path.read_text().splitlines()):
            if row["reduction"] == reduction:
                low, high = float(row["top1_low"]), float(row["top1_high"])
                return f"{float(row['top1']):.1f} ({low:.1f} to {high:.1f})"
    return ""


def runs(output: pathlib.Path) -> Iterator[tuple[str, str, pathlib.Path]]:
    """Name, seed and work directory of each run that has ended."""
    for ended in sorted(output.glob("*_[0-9].json")):
        name, _, seed = ended.stem.rpartition("_")
        yield name, seed, ended.with_suffix("")


def log_of(
    workdir: pathlib.Path, name: str, seed: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was run on what, and the evaluations of a run that has ended."""
    config = json.loads((workdir / "config.json").read_text())
    metrics = lines_of(workdir / "metrics.jsonl")
    seconds = training_seconds(metrics, config["batch_size"])
    about = {
        "name": name,
        "seed": int(seed),
        "model": config["model"]["name"],
        "reduction": config["reduction"] or "the model's own",
        "epochs": config["total_epochs"],
        "batch_size": config["batch_size"],
        "gmacs": next(record["gmacs"] for record in reversed(metrics) if "gmacs" in record),
        "training_seconds": seconds and round(seconds, 1),
        "processor": processor(),
        "versions": {package: importlib.metadata.version(package) for package in VERSIONS},
    }
    return about, [record for record in metrics if "val_top1" in record]


def row_of(
    output: pathlib.Path, about: dict[str, Any], evaluations: list[dict[str, Any]], log: str
) -> tuple[Any, ...]:
    """A run's cells, in the order of `COLUMNS`."""
    name, seed, seconds = about["name"], about["seed"], about["training_seconds"]
    return (
        name,
        seed,
        about["epochs"] or f"{evaluations[-1]['step']} steps",
        "too short" if seconds is None else in_words(seconds),
        f"{about['gmacs']:.3g}",
        accuracy(output / f"before_{seed}", about["reduction"]),
        accuracy(output / f"after_{name}_{seed}", about["reduction"])
        or f"{evaluations[-1]['val_top1']:.1f}",
        f"[{log}](logs/{log})",
    )


def plot(found: list[tuple[dict[str, Any], list[dict[str, Any]]]], path: pathlib.Path) -> None:
    """Top-1 of each evaluation against the minutes trained, and of the last against the GMACs.

    A method has one colour and marker, and a line or point for each seed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    methods = list(dict.fromkeys(about["name"] for about, _ in found))
    for about, evaluations in found:
        style = comparison_report.method_style(methods.index(about["name"])) | {"ms": 5}
        top1 = [record["val_top1"] for record in evaluations]
        if about["training_seconds"] is not None:
            per_step = about["training_seconds"] / 60 / evaluations[-1]["step"]
            minutes = [per_step * record["step"] for record in evaluations]
            left.plot(minutes, top1, lw=0.9, alpha=0.8, **style)
        right.plot([about["gmacs"]], top1[-1:], ls="", label=about["name"], **style)
    left.set(xlabel="minutes of training", ylabel="top-1, %")
    right.set(xlabel="GMACs an image", ylabel="top-1 in the end, %")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    named = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named, loc="outside right center")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prints the rows; writes the logs and, where it is asked for, the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("docs/logs"))
    parser.add_argument("--prefix", default="finetune", help="of the logs' names")
    parser.add_argument("--picture", type=pathlib.Path, help="a PNG file to write")
    parser.add_argument("--leave_out", nargs="*", default=[], help="names that it is without")
    flags = parser.parse_args()
    found = [log_of(workdir, name, seed) for name, seed, workdir in runs(flags.output)]
    if not found:
        parser.error(f"no run in {flags.output} has ended")
    flags.logs.mkdir(parents=True, exist_ok=True)
    rows = []
    for about, evaluations in found:
        log = f"{flags.prefix}_{about['name']}_{about['seed']}.jsonl"
        lines = [tables.json_line(record) + "\n" for record in [about, *evaluations]]
        (flags.logs / log).write_text("".join(lines))
        rows.append(row_of(flags.output, about, evaluations, log))
    if flags.picture:
        plot([run for run in found if run[0]["name"] not in flags.leave_out], flags.picture)
    filled = [i for i in range(len(COLUMNS)) if any(row[i] != "" for row in rows)]
    header, *rows = ([row[i] for i in filled] for row in (COLUMNS, *rows))
    print(tables.markdown(header, rows))


if __name__ == "__main__":
    main()
