"""What accelerators' own compilers say of the recipes and the models, without them: two tables.

    python experiments/compilers.py OUTPUT [--target=v5e] [--only=deit_s,inference_small]
    python experiments/compilers.py OUTPUT --target=h100

Each step is a command whose JSON is kept in OUTPUT, so that it goes on where it was stopped; a
training step compiles for minutes on a TPU. OUTPUT/tables.md has what is there, with the commands.
All times are estimates, never measurements.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from evovit_jax import tables
from evovit_jax.benchmarking import compiler_rows
from evovit_jax.reduction import list_reductions

CIFAR10 = ["--config.data=tfds:cifar10:train", "--config.eval_data=tfds:cifar10:test"]
# Recipe and devices of each plan; the first as colab/train_on_tpu.ipynb runs it.
RECIPES = ("deit_s", "deit_s_evo", "levit_256_evo", "deit_s_dynamicvit", "deit_b_evo")
PLANS = {
    "v5e": {
        "cifar10_evo": ["v5e:2x2", *CIFAR10, "--config.batch_size=512"],
        **{recipe: ["v5e:8x8"] for recipe in RECIPES},
    },
    "h100": {recipe: ["h100:1x8"] for recipe in RECIPES},
}
S, B, T = (f"deit_{size}_patch16_224" for size in ("small", "base", "tiny"))
# One network of each kind.
KINDS = (
    f"{S};levit_256;evo_levit_256;lvvit_s;regnety_160;convnext_tiny.fb_in1k;"
    "swin_tiny_patch4_window7_224.ms_in1k;pvt_v2_b2;pit_s_224;cvt_13;convit_small;"
    "crossvit_small_240;volo_d1_224;lookupvit_base_patch16_224;tokenlearner_vit_small_patch16_224;"
    "deit3_small_patch16_224;vit_small_patch14_dinov2.lvd142m;"
    "vit_small_patch16_dinov3.lvd1689m;vit_base_patch16_siglip_224.webli;"
    "vit_base_patch32_clip_224.openai;vit_pe_core_small_patch16_384.fb;vit_base_patch16_224.mae"
)
# Mode, batch size and models of each table.
BENCHMARKS = {
    "v5e": {
        "inference_small": ("inference", 64, f"{S};evo_{S}"),
        "gradient_small": ("gradient", 64, f"{S};evo_{S}"),
        "train_small": ("train", 64, f"{S};evo_{S}"),
        "inference_methods": (
            "inference", 64, f"{S}+evit,keep_rate=0.7;{S}+tome,r=13;{S}+dynamicvit"
        ),
        "inference_levit": ("inference", 64, "levit_256;evo_levit_256"),
        "inference_tiny_base": ("inference", 64, f"{T};evo_{T};{B};evo_{B}"),
        "inference_256": ("inference", 256, f"{S};evo_{S}"),
    },
    "h100": {
        f"{mode}_{name}": (mode, 64, models)
        for mode in ("inference", "train")
        for name, models in (
            ("small", f"{S};evo_{S}"),
            ("methods", ";".join(f"{S}+{name}" for name in list_reductions() if name != "none")),
            # RegNet is a teacher, which nobody trains here.
            ("kinds", KINDS if mode == "inference" else KINDS.replace("regnety_160;", "")),
        )
    },
}  # fmt: skip
MIB, GIB = 2**20, 2**30
PLAN_COLUMNS = (
    "recipe", "devices", "images a device", "arguments MiB", "temporary MiB", "program MiB",
    "GiB a device", "collectives of a step, MiB", "estimated ms a step", "estimated hours in all",
    "smallest that fits",
)  # fmt: skip


def commands(target: str) -> dict[str, list[str]]:
    """What each step runs, after `python -m evovit_jax.`, by the step's name."""
    found = {
        name: ["main", f"--config=configs/{name}.py", "--plan", f"--topology={devices}", *flags]
        for name, (devices, *flags) in PLANS[target].items()
    }
    for name, (mode, batch, models) in BENCHMARKS[target].items():
        flags = [f"--mode={mode}", f"--batch_sizes={batch}", f"--models={models}"]
        found[name] = ["benchmark", f"--target={target}", *flags]
    return found


def run(name: str, command: Sequence[str], folder: pathlib.Path) -> None:
    """Runs a step unless its result is there; of a benchmark status 1 says what did not compile."""
    kept = folder / f"{name}.json"
    if kept.exists():
        return
    module, *flags = command
    whole = [sys.executable, "-m", f"evovit_jax.{module}", *flags, "--json"]
    done = subprocess.run(whole, stdout=subprocess.PIPE, text=True, check=False)
    last = (done.stdout.splitlines() or [""])[-1]
    if done.returncode > 1 or not last.startswith("{"):
        raise subprocess.CalledProcessError(done.returncode, whole)
    part = kept.with_suffix(".part")
    part.write_text(last)
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


def in_both_modes(found: dict[str, Any], name: str) -> str:
    """Inference and a training step of the same networks beside one another."""
    names = ("kernels", "fused_attention", "moved_mb", "temporary_mb", "estimated_ms")
    titles = ("kernels", "fused attention", "MB moved", "temporary MB", "estimated ms")
    modes = ("inference", "train")
    sides = [
        {(row["model"], row["reduction"]): row for row in found[f"{mode}_{name}"]["rows"]}
        for mode in modes
    ]
    rows = [
        [*network, *(side.get(network, {}).get(n, "-") for side in sides for n in names)]
        for network in dict.fromkeys(network for side in sides for network in side)
    ]
    return tables.markdown(
        ["model", "reduction", *(f"{mode}: {title}" for mode in modes for title in titles)], rows
    )


def report(folder: pathlib.Path, target: str) -> Iterator[str]:
    """What tables.md has: a table of the plans, those of the benchmarks, the commands."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    compilers = sorted({values["estimate_of"] for values in found.values()})
    yield f"ESTIMATES ({', '.join(compilers)}), not measurements"
    rows = [row for name in PLANS[target] if name in found for row in plan_rows(name, found[name])]
    if rows:
        yield tables.markdown(PLAN_COLUMNS, rows)
    yield from (compiler_rows.table(found[name]) for name in BENCHMARKS[target] if name in found)
    for name in ("small", "methods", "kinds") if target == "h100" else ():
        if {f"inference_{name}", f"train_{name}"} <= found.keys():
            yield in_both_modes(found, name)
    done = [command for name, command in commands(target).items() if name in found]
    yield "\n".join(f"    python -m evovit_jax.{' '.join(map(quoted, flags))}" for flags in done)


def quoted(word: str) -> str:
    """A word of a command as the shell takes it."""
    return f'"{word}"' if ";" in word else word


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--target", choices=PLANS, default="v5e")
    parser.add_argument("--only", default="", help="steps, commas between them; all by default")
    flags = parser.parse_args()
    folder = flags.output / flags.target
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in flags.only.split(",") if name]
    for name, command in commands(flags.target).items():
        if not chosen or name in chosen:
            run(name, command, folder)
            (folder / "tables.md").write_text("\n\n".join(report(folder, flags.target)) + "\n")
    print((folder / "tables.md").read_text())


if __name__ == "__main__":
    main()
