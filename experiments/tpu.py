"""What the TPU's own compiler says of the recipes and the models, without a TPU: two tables.

    python experiments/tpu.py OUTPUT [--only=deit_s,inference_small]

Each step is a command whose JSON is kept in OUTPUT, so that it goes on where it was stopped; a
training step compiles for minutes. OUTPUT/tables.md has what is there, with the commands. All times
are estimates of the compiler, never measurements.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from evovit_jax import tables
from evovit_jax.benchmarking import tpu_estimates

CIFAR10 = ["--config.data=tfds:cifar10:train", "--config.eval_data=tfds:cifar10:test"]
# Recipe and slice of each plan; the first as colab/train_on_tpu.ipynb runs it.
PLANS = {
    "cifar10_evo": ["v5e:2x2", *CIFAR10, "--config.batch_size=512"],
    "deit_s": ["v5e:8x8"],
    "deit_s_evo": ["v5e:8x8"],
    "levit_256_evo": ["v5e:8x8"],
    "deit_s_dynamicvit": ["v5e:8x8"],
    "deit_b_evo": ["v5e:8x8"],
}
S, B, T = (f"deit_{size}_patch16_224" for size in ("small", "base", "tiny"))
# Mode, batch size and models of each table.
BENCHMARKS = {
    "inference_small": ("inference", 64, f"{S};evo_{S}"),
    "train_small": ("train", 64, f"{S};evo_{S}"),
    "inference_methods": (
        "inference", 64, f"{S}+evit,keep_rate=0.7;{S}+tome,r=13;{S}+dynamicvit"
    ),
    "inference_levit": ("inference", 64, "levit_256;evo_levit_256"),
    "inference_tiny_base": ("inference", 64, f"{T};evo_{T};{B};evo_{B}"),
    "inference_256": ("inference", 256, f"{S};evo_{S}"),
}  # fmt: skip
MIB, GIB = 2**20, 2**30
PLAN_COLUMNS = (
    "recipe", "slice", "images a device", "arguments MiB", "temporary MiB", "program MiB",
    "GiB a device", "collectives of a step, MiB", "estimated ms a step", "estimated hours in all",
    "smallest slice",
)  # fmt: skip


def commands() -> dict[str, list[str]]:
    """What each step runs, after `python -m evovit_jax.`, by the step's name."""
    found = {
        name: ["main", f"--config=configs/{name}.py", "--plan", f"--topology={slice}", *flags]
        for name, (slice, *flags) in PLANS.items()
    }
    for name, (mode, batch, models) in BENCHMARKS.items():
        flags = [f"--mode={mode}", f"--batch_sizes={batch}", f"--models={models}"]
        found[name] = ["benchmark", "--target=v5e", *flags]
    return found


def run(name: str, command: Sequence[str], folder: pathlib.Path) -> None:
    """Runs a step unless its result is there."""
    kept = folder / f"{name}.json"
    if kept.exists():
        return
    module, *flags = command
    whole = [sys.executable, "-m", f"evovit_jax.{module}", *flags, "--json"]
    done = subprocess.run(whole, stdout=subprocess.PIPE, text=True, check=True)
    part = kept.with_suffix(".part")
    part.write_text(done.stdout.splitlines()[-1])
    part.replace(kept)


def plan_rows(name: str, found: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each phase that was compiled."""
    for phase in found["phases"]:
        plan = phase["plan"]
        if plan is None:
            continue
        sent = "; ".join(
            f"{collective['count']} {kind}: "
            + ", ".join(f"{d} {n / MIB:.1f}" for d, n in collective["bytes_by_dtype"].items())
            for kind, collective in plan["collectives"].items()
        )
        temporary, program = (plan[f"{n}_bytes_per_device"] for n in ("activation", "program"))
        total = plan["total_bytes_per_device"]
        yield [
            f"`{name}`, {plan['phase'].split(' the reduction')[0]}",
            found["topology"],
            plan["batch_size_per_device"],
            *(f"{n / MIB:.0f}" for n in (total - temporary - program, temporary, program)),
            f"{total / GIB:.2f} of {found['hbm_gib']:g}",
            sent,
            f"{phase['estimated_ms_low']:.1f} to {phase['estimated_ms']:.1f}",
            f"{found['estimated_hours_low']:.1f} to {found['estimated_hours']:.1f}",
            found["smallest_topology"],
        ]


def report(folder: pathlib.Path) -> Iterator[str]:
    """What tables.md has: a table of the plans, those of the benchmarks, the commands."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    compilers = sorted({values["estimate_of"] for values in found.values()})
    yield f"ESTIMATES of the compiler ({', '.join(compilers)}), not measurements"
    rows = [row for name in PLANS if name in found for row in plan_rows(name, found[name])]
    yield tables.markdown(PLAN_COLUMNS, rows)
    yield from (tpu_estimates.table(found[name]) for name in BENCHMARKS if name in found)
    done = [command for name, command in commands().items() if name in found]
    yield "\n".join(f"    python -m evovit_jax.{' '.join(map(quoted, flags))}" for flags in done)


def quoted(word: str) -> str:
    """A word of a command as the shell takes it."""
    return f'"{word}"' if ";" in word else word


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--only", default="", help="steps, commas between them; all by default")
    flags = parser.parse_args()
    flags.output.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in flags.only.split(",") if name]
    for name, command in commands().items():
        if not chosen or name in chosen:
            run(name, command, flags.output)
            (flags.output / "tables.md").write_text("\n\n".join(report(flags.output)) + "\n")
    print((flags.output / "tables.md").read_text())


if __name__ == "__main__":
    main()
