"""The tables of docs/results.md, and their logs, from the trainings that an experiment left.

    python experiments/results.py OUTPUT [--logs=docs/logs] [--prefix=finetune]

OUTPUT is the folder of digits.sh, finetune_cifar10.sh or scratch_cifar10.sh. Prints a Markdown row
for each run that has ended, and writes its log: a line of JSON that says what was run on what, then
one for each evaluation. Times are those of the training steps alone.
"""

import argparse
import csv
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from evovit_jax import tables

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


def main() -> None:
    """Prints the rows and writes the logs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("docs/logs"))
    parser.add_argument("--prefix", default="finetune", help="of the logs' names")
    flags = parser.parse_args()
    flags.logs.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, seed, workdir in runs(flags.output):
        config = json.loads((workdir / "config.json").read_text())
        metrics = lines_of(workdir / "metrics.jsonl")
        seconds = training_seconds(metrics, config["batch_size"])
        reduction = config["reduction"] or "the model's own"
        after = accuracy(flags.output / f"after_{name}_{seed}", reduction)
        about = {
            "name": name,
            "seed": int(seed),
            "model": config["model"]["name"],
            "reduction": reduction,
            "epochs": config["total_epochs"],
            "batch_size": config["batch_size"],
            "training_seconds": seconds and round(seconds, 1),
            "processor": processor(),
            "versions": {package: importlib.metadata.version(package) for package in VERSIONS},
        }
        evaluations = [record for record in metrics if "val_top1" in record]
        log = f"{flags.prefix}_{name}_{seed}.jsonl"
        (flags.logs / log).write_text(
            "".join(tables.json_line(record) + "\n" for record in [about, *evaluations])
        )
        gmacs = next(record["gmacs"] for record in reversed(metrics) if "gmacs" in record)
        before = accuracy(flags.output / f"before_{seed}", reduction)
        ours = after or f"{evaluations[-1]['val_top1']:.1f}"
        epochs = config["total_epochs"] or f"{metrics[-1]['step']} steps"
        time = "too short" if seconds is None else in_words(seconds)
        link = f"[{log}](logs/{log})"
        rows.append((name, seed, epochs, time, f"{gmacs:.3g}", before, ours, link))
    if not rows:
        parser.error(f"no run in {flags.output} has ended")
    filled = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
    header, *rows = ([row[i] for i in filled] for row in (COLUMNS, *rows))
    print(tables.markdown(header, rows))


if __name__ == "__main__":
    main()
